package redisstreams

import (
	"context"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
)

// delivery is one entry of a stream on its way through a handler.
type delivery struct {
	id  string
	key string // "" = no order
	msg *message.Message

	cancel context.CancelFunc // of the message's context, while a handler has it
	handed bool
	nacks  int
	// lost says that another member of the group holds the entry now.
	lost bool
}

// window holds the entries that a subscription has read and not finished. It hands out one entry of a
// key at a time, in the order in which they were added; one that failed keeps its place. It is not
// safe for concurrent use.
type window struct {
	limit  int // of entries with handlers
	handed int
	all    map[string]*delivery
	ready  []*delivery
	// lanes are the entries of each key, first the one whose turn it is.
	lanes map[string][]*delivery
}

// ahead is how many entries there may be for each that handlers may have. Those that wait for their key
// or for another try take no handler, and should not keep other keys from being read; but they are
// kept from the other members of the group.
const ahead = 10

func newWindow(limit int) *window {
	return &window{limit: limit, all: make(map[string]*delivery), lanes: make(map[string][]*delivery)}
}

// room is how many more entries to read.
func (w *window) room() int {
	return min(w.limit-w.handed-len(w.ready), w.limit*ahead-len(w.all))
}

func (w *window) add(d *delivery) {
	w.all[d.id] = d
	if d.key != "" {
		w.lanes[d.key] = append(w.lanes[d.key], d)
		if len(w.lanes[d.key]) > 1 {
			return
		}
	}
	w.ready = append(w.ready, d)
}

// next is the entry to hand out now, nil if there is none.
func (w *window) next() *delivery {
	if len(w.ready) == 0 || w.handed >= w.limit {
		return nil
	}
	return w.ready[0]
}

// hand takes the next entry off. It stays in the window until again or remove.
func (w *window) hand() *delivery {
	d := w.ready[0]
	w.ready[0] = nil
	w.ready = w.ready[1:]
	d.handed = true
	w.handed++
	return d
}

// back says that the handler is through with the entry.
func (w *window) back(d *delivery) {
	if d.handed {
		d.handed = false
		w.handed--
	}
}

// again makes an entry ready that came back. Its key has waited for it.
func (w *window) again(d *delivery) {
	w.ready = append(w.ready, d)
}

// remove ends an entry, wherever it is, and lets the next of its key go.
func (w *window) remove(d *delivery) {
	w.back(d)
	delete(w.all, d.id)
	w.ready = without(w.ready, d)
	if d.key == "" {
		return
	}
	lane := w.lanes[d.key]
	first := lane[0] == d
	lane = without(lane, d)
	if len(lane) == 0 {
		delete(w.lanes, d.key)
		return
	}
	w.lanes[d.key] = lane
	if first {
		w.ready = append(w.ready, lane[0])
	}
}

func without(list []*delivery, d *delivery) []*delivery {
	if i := slices.Index(list, d); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
