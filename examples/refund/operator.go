package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/millrace-go/millrace/outbox"
)

// operator is the person who looks at what failed for good.
type operator struct {
	refunds  *refunds
	payments *payments
	out      io.Writer
}

// work looks at the refunds that failed, repairs what is wrong with them, and has them sent again. It reports
// whether there were any.
func (o operator) work(ctx context.Context) (found bool, err error) {
	page, err := o.refunds.box.List(ctx, outbox.Query{Filter: outbox.Filter{State: outbox.StateDead}})
	if err != nil || len(page.Records) == 0 {
		return false, err
	}
	fmt.Fprintf(o.out, "\n%d refunds are with the operator, who looks at them:\n", len(page.Records))
	var ids []string
	for i, dead := range page.Records {
		trace, err := o.refunds.box.Find(ctx, dead.ID)
		if err != nil {
			return false, err
		}
		var refund Refund
		if err := json.Unmarshal(trace.Records[0].Payload, &refund); err != nil {
			return false, err
		}
		if i < 3 {
			fmt.Fprintf(o.out, "  %s  %s after %d sending(s): %s\n", dead.ID, dead.Reason, dead.Attempts, dead.Error)
		} else if i == 3 {
			fmt.Fprintln(o.out, "  …")
		}
		if err := o.payments.reopen(ctx, refund.Account); err != nil {
			return false, err
		}
		ids = append(ids, dead.ID)
	}
	// The refund is out of the person's hands before it can be executed.
	if _, err := o.refunds.stage.refunds.ExecContext(ctx, `UPDATE refunds SET state = 'granted' WHERE state = 'manual'`); err != nil {
		return false, err
	}
	by := outbox.By{Who: "operator", Why: "accounts reopened"}
	report, err := o.refunds.box.Replay(ctx, by, outbox.Filter{IDs: ids}, outbox.Bulk{})
	if err != nil {
		return false, err
	}
	fmt.Fprintf(o.out, "  the accounts are reopened, and %d refunds are sent again (audit entry %d)\n", report.Done, report.Audit)
	return true, nil
}
