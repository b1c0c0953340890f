package forwarder

import (
	"github.com/ThreeDotsLabs/watermill/message"
)

// batch describes items to observers.
func (p *pipeline) batch(items []*item) Batch {
	b := Batch{Destination: p.dest.name}
	if len(p.s.f.told) == 0 {
		return b
	}
	for _, it := range items {
		b.Messages = append(b.Messages, p.message(it))
	}
	return b
}

// describe describes a batch that is about to be published, with the metadata that will travel.
func (p *pipeline) describe(items []*item, msgs []*message.Message) Batch {
	b := p.batch(items)
	for i := range b.Messages {
		b.Messages[i].Metadata = msgs[i].Metadata
	}
	return b
}

func (p *pipeline) message(it *item) Message {
	return Message{
		ID: it.row.ID, Topic: it.row.Topic, Destination: p.dest.name,
		Position: it.row.Pos, Lane: it.row.Lane, HasKey: it.row.Key != "", Attempt: it.attempt,
		Size: it.row.Size, CreatedAt: it.row.CreatedAt, Metadata: it.row.Metadata,
	}
}

// answers says what the publisher's answers were taken for.
func (os observers) answers(verdicts []verdict, errs []error) []Answer {
	if len(os) == 0 {
		return nil
	}
	answers := make([]Answer, len(verdicts))
	for i, v := range verdicts {
		answers[i] = Answer{Reason: v.reason, Err: errs[i]}
		switch v.kind {
		case delivered:
			answers[i].Outcome = Delivered
		case refused:
			answers[i].Outcome = Refused
		case deferred:
			answers[i].Outcome = Deferred
		default:
			answers[i].Outcome = Unsure
		}
	}
	return answers
}
