package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/middleware"
)

var errClosed = errors.New("the account is closed")

// payments is the payment service.
type payments struct {
	*stage
	db    *millrace.SQLDB
	chain []message.HandlerMiddleware
	lost  *lossy
	alarm atomic.Int64 // requests that it gave up
}

func newPayments(ctx context.Context, s *stage) (*payments, error) {
	p := &payments{stage: s, db: millrace.SQL(s.payments), lost: &lossy{Publisher: s.pub}}
	if err := millrace.Migrate(ctx, p.db, dedup.Migrations()); err != nil {
		return nil, err
	}
	// An execution could stand here twice, so that one would be seen.
	for _, table := range []string{
		`CREATE TABLE executions (refund VARCHAR(40) NOT NULL, amount BIGINT NOT NULL)`,
		`CREATE TABLE reopened (account VARCHAR(40) PRIMARY KEY)`,
	} {
		if _, err := s.payments.ExecContext(ctx, table); err != nil {
			return nil, err
		}
	}
	inbox, err := dedup.NewInbox(p.db, dedup.InboxConfig{})
	if err != nil {
		return nil, err
	}
	poison, err1 := middleware.PoisonQueue(middleware.PoisonConfig{Publisher: s.pub, Topic: s.topic + "_failed"})
	confirm, err2 := middleware.Confirm(middleware.ConfirmConfig{Group: "payments", Publisher: p.lost})
	once, err3 := middleware.Transactional(p.db, inbox, middleware.TransactionalConfig{Consumer: "payments"})
	p.chain = []message.HandlerMiddleware{poison, confirm, once}
	return p, errors.Join(err1, err2, err3)
}

// subscribe makes the queues, so that what comes while the service is down is kept.
func (p *payments) subscribe(ctx context.Context) error {
	for topic, group := range map[string]string{p.topic: "payments", p.topic + "_failed": "alarm"} {
		if err := p.initialize(ctx, topic, group); err != nil {
			return err
		}
	}
	return nil
}

func (p *payments) start(ctx context.Context) {
	p.router(ctx, "payments", func(router *message.Router) error {
		h := router.AddConsumerHandler("execute", p.topic, p.subscriber("payments"), p.execute)
		h.AddMiddleware(p.chain...)
		router.AddConsumerHandler("alarm", p.topic+"_failed", p.subscriber("alarm"), func(*message.Message) error {
			p.alarm.Add(1) // somebody would be paged here
			return nil
		})
		return nil
	})
}

// execute pays one refund. The payment, and that it was made, are one transaction: a copy of the request finds
// it done, and confirms again.
func (p *payments) execute(msg *message.Message) error {
	var refund Refund
	if err := json.Unmarshal(msg.Payload, &refund); err != nil {
		return middleware.Permanent(err)
	}
	return millrace.InTx(msg.Context(), p.db, func(ctx context.Context, tx *millrace.Tx) error {
		var reopened int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM reopened WHERE account = $1`, refund.Account).Scan(&reopened); err != nil {
			return err
		}
		if strings.HasPrefix(refund.Account, "closed-") && reopened == 0 {
			return middleware.Permanent(fmt.Errorf("%w: %s", errClosed, refund.Account))
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO executions (refund, amount) VALUES ($1, $2)`, refund.ID, refund.Amount)
		return err
	}, millrace.Mandatory())
}

// reopen is the repair: the account takes money again.
func (p *payments) reopen(ctx context.Context, account string) error {
	_, err := p.stage.payments.ExecContext(ctx, `INSERT INTO reopened (account) VALUES ($1) ON CONFLICT DO NOTHING`, account)
	return err
}
