package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/outbox"
)

// Refund is what somebody asks for, and what is published when it is granted.
type Refund struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	Amount  int64  `json:"amount"` // cents
}

// mostAutomatic is the policy: more than that is for a person to decide.
const mostAutomatic = 100_00

// refunds is the refund service.
type refunds struct {
	*stage
	db  *millrace.SQLDB
	box *outbox.Box
	fwd *forwarder.Forwarder
}

func newRefunds(ctx context.Context, s *stage) (*refunds, error) {
	r := &refunds{stage: s, db: millrace.SQL(s.refunds)}
	var err error
	r.box, err = outbox.New(r.db, outbox.Config{
		Policies: []outbox.Policy{{
			Topics: []string{s.topic}, After: outbox.AwaitConfirmation, Groups: []string{"payments"},
			Deadline: s.cfg.deadline, MaxAttempts: 20,
		}},
		Confirming: outbox.Confirming{Topic: s.confirmations, OnDead: r.failed},
	})
	if err != nil {
		return nil, err
	}
	if err := r.box.Migrate(ctx); err != nil {
		return nil, err
	}
	if _, err := s.refunds.ExecContext(ctx, `CREATE TABLE refunds (id VARCHAR(40) PRIMARY KEY, amount BIGINT NOT NULL, state VARCHAR(20) NOT NULL)`); err != nil {
		return nil, err
	}
	r.fwd, err = forwarder.New(r.box, &twice{Publisher: s.pub}, forwarder.Config{PollInterval: 20 * time.Millisecond, MaxPollInterval: 100 * time.Millisecond})
	return r, err
}

// start runs the forwarder, and hears what the payment service confirms.
func (r *refunds) start(ctx context.Context) {
	r.router(ctx, "refunds", func(router *message.Router) error {
		router.AddPlugin(r.fwd.Plugin)
		return r.box.ConfirmationsPlugin(r.subscriber("refunds"))(router)
	})
}

// request grants a refund or declines it. The snapshot and the message are one transaction: there is no refund
// that nobody executes, and none is executed that is not in the books. It may be called again.
func (r *refunds) request(ctx context.Context, refund Refund) error {
	return millrace.InTx(ctx, r.db, func(ctx context.Context, tx *millrace.Tx) error {
		granted := refund.Amount <= mostAutomatic
		state := map[bool]string{true: "granted", false: "declined"}[granted]
		result, err := tx.ExecContext(ctx, `INSERT INTO refunds (id, amount, state) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, refund.ID, refund.Amount, state)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 || !granted {
			return err // asked for before, or not for us
		}
		payload, err := json.Marshal(refund)
		if err != nil {
			return err
		}
		return r.box.Publish(ctx, r.topic, outbox.WithKey(message.NewMessage(refund.ID, payload), refund.Account))
	})
}

// failed runs in the transaction in which a message ends as dead: the refund goes to a person.
func (r *refunds) failed(ctx context.Context, dead outbox.Record) error {
	return millrace.InTx(ctx, r.db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE refunds SET state = 'manual' WHERE id = $1`, dead.ID)
		return err
	}, millrace.Mandatory())
}

// settled waits until every granted refund is confirmed, or with a person.
func (r *refunds) settled(ctx context.Context) error {
	for {
		var open int
		err := r.stage.refunds.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM millrace_outbox) + (SELECT count(*) FROM millrace_sent WHERE state = 'sent')`).Scan(&open)
		if err != nil || open == 0 {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// refundOf makes up the n-th request. One in ten is for a person, and one in twenty for a closed account.
func refundOf(n int) Refund {
	r := Refund{ID: fmt.Sprintf("refund-%03d", n), Account: fmt.Sprintf("account-%02d", n%17), Amount: int64(10_00 + n)}
	switch {
	case n%10 == 3:
		r.Amount = 500_00
	case n%20 == 7:
		r.Account = fmt.Sprintf("closed-%03d", n)
	}
	return r
}
