package rabbitmq

import (
	"context"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// item is one delivery from its arrival to its ack.
type item struct {
	session  *session
	delivery amqp091.Delivery
	id, key  string
	nacks    int // in a row, as far as we know

	msg    *message.Message // what was handed out last; nil while it waits
	cancel context.CancelFunc
}

// window is what a subscription has in hand. Of each key it lets one item through at a time; it is
// used by one goroutine.
type window struct {
	ready []*item            // may be handed out, in this order
	lanes map[string][]*item // by key: the item that went through, and those behind it
	out   map[*item]bool     // handed out, and not settled
}

func newWindow() *window {
	return &window{lanes: map[string][]*item{}, out: map[*item]bool{}}
}

// add takes in what has arrived.
func (w *window) add(it *item) {
	if it.key != "" {
		w.lanes[it.key] = append(w.lanes[it.key], it)
		if len(w.lanes[it.key]) > 1 {
			return
		}
	}
	w.ready = append(w.ready, it)
}

// handOut takes the first ready item.
func (w *window) handOut() {
	w.out[w.ready[0]] = true
	w.ready = slices.Delete(w.ready, 0, 1)
}

// settle takes an item out of the hands of its handler. It keeps its place at the head of its lane
// until it is removed.
func (w *window) settle(it *item) {
	delete(w.out, it)
	it.msg = nil
}

// again makes an item ready that has kept its place.
func (w *window) again(it *item) {
	w.ready = append(w.ready, it)
}

// remove forgets an item that is not handed out, and lets the next of its key through.
func (w *window) remove(it *item) {
	if it.key == "" {
		return
	}
	lane := w.lanes[it.key]
	if len(lane) == 0 || lane[0] != it {
		return
	}
	if len(lane) == 1 {
		delete(w.lanes, it.key)
		return
	}
	w.lanes[it.key] = lane[1:]
	w.ready = append(w.ready, lane[1])
}

// shed forgets all that is not handed out, and returns it in the order of arrival per key. A lane
// whose first item is with a handler stays closed until that is settled.
func (w *window) shed() []*item {
	var shed []*item
	for _, it := range w.ready {
		if it.key == "" {
			shed = append(shed, it)
		}
	}
	w.ready = nil
	for key, lane := range w.lanes {
		if w.out[lane[0]] {
			w.lanes[key] = lane[:1:1]
			lane = lane[1:]
		} else {
			delete(w.lanes, key)
		}
		shed = append(shed, lane...)
	}
	return shed
}
