package rabbitmq

import (
	"sync"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// batch is the messages of one call. Its memory, and above all that of the tables of headers, is used again.
type batch struct {
	messages []outgoing
	prepared []*outgoing // those that can be sent
}

// batchPool lends batches.
type batchPool struct{ pool sync.Pool }

// get lends a batch of n empty messages.
func (p *batchPool) get(n int) *batch {
	b, _ := p.pool.Get().(*batch)
	if b == nil {
		b = &batch{}
	}
	if cap(b.messages) < n {
		b.messages = make([]outgoing, n)
		b.prepared = make([]*outgoing, 0, n)
	}
	b.messages = b.messages[:n]
	return b
}

// keptHeaders is the size of headers up to which their table is kept.
const keptHeaders = 2 << 10

// put takes a batch back of which nothing is on its way any more.
func (p *batchPool) put(b *batch) {
	for i := range b.messages {
		o := &b.messages[i]
		headers := o.publishing.Headers
		if o.headerSize > keptHeaders {
			headers = nil
		}
		*o = outgoing{publishing: amqp091.Publishing{Headers: headers}}
	}
	clear(b.prepared)
	b.prepared = b.prepared[:0]
	p.pool.Put(b)
}
