// Package meta names the message metadata that millrace reads and writes.
//
// Every name begins with Prefix, which is reserved: what a user sets under it is dropped on publish,
// except Key.
package meta

const (
	// Prefix is reserved for millrace.
	Prefix = "millrace_"

	// Key is the order key: messages of one key are forwarded in the order in which the
	// transactions that wrote them committed. Set by the user, through outbox.WithKey.
	Key = Prefix + "key"

	// Place says who sent a copy of a message: four decimal numbers with dots between them. The lane that the message's
	// key belongs to, 0 to 63; the epoch, which counts how often the lane changed hands; the message's position in its
	// outbox; and the attempt to publish it, from 1. It is one entry because a broker has work with each.
	Place = Prefix + "place"

	// Confirm is the topic to which the consumers of the message are to say that they are done with it.
	// FirstSent is when it was sent for the first time, in milliseconds since 1970; MaxAge is for how
	// long after that it may be sent again, in milliseconds; Sending counts how often it was sent, from 1.
	Confirm   = Prefix + "confirm"
	FirstSent = Prefix + "first_sent"
	MaxAge    = Prefix + "max_age"
	Sending   = Prefix + "sending"

	// Destination is where a dead or deferred message was to go.
	Destination = Prefix + "destination"

	// Reason is the code of why a message was set aside; Error the bounded text of the error.
	Reason = Prefix + "reason"
	Error  = Prefix + "error"
)

// Malformed is the Reason that a subscriber gives to an entry that it could not read as a message.
const Malformed = "malformed"
