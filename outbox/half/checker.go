package half

import (
	"context"
)

// Verdict is the answer to what became of a local transaction.
type Verdict int

const (
	// Unknown is asked again later. It is what every error and every answer that is not understood
	// counts as.
	Unknown Verdict = iota
	// WasCommitted: the local transaction has committed. The message is let go.
	WasCommitted
	// WasRolledBack: the local transaction has not committed and never can.
	WasRolledBack
)

// Checker answers for the business what became of the local transaction of a message. It may be asked
// by any replica, at any time after Config.FirstCheck, any number of times, concurrently.
//
// WasRolledBack is a promise that the transaction can never commit. A look that merely does not find its
// effects does not prove that: the transaction may be open still. It is acted on when the message is
// older than Config.MaxAge, and then the message ends with its content kept, so that Commit revives it.
// An error counts as Unknown.
type Checker func(ctx context.Context, m Info) (Verdict, error)
