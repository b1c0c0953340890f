package main

import (
	"fmt"

	arm "github.com/millrace-go/millrace/internal/fault"
)

// fault is what goes wrong with an order.
type fault int

const (
	nothing fault = iota
	takenBack
	crashBeforeCommit
	crashAfterCommit
	brokerAway
	answerLost
)

// faultOf is the same for each style. Half of the orders meet none.
func faultOf(order int) fault {
	if n := order % 10; n < 5 {
		return fault(n + 1)
	}
	return nothing
}

// crashed ends the process, as far as an order is concerned: nothing in memory goes on, and the database
// rolls back what was not committed.
type crashed struct{}

// crash happens at this point if the order's fault is this one.
func crash(order int, here fault) {
	if faultOf(order) == here {
		panic(crashed{})
	}
}

// crashAt is crash at a point inside of millrace. What it returns takes it back.
func crashAt(point string, order int, here fault) (undo func()) {
	if faultOf(order) != here {
		return func() {}
	}
	return arm.Arm(point, 1, func() { panic(crashed{}) })
}

// survive runs fn up to the crash, if there is one.
func survive(fn func() error) (err error) {
	defer func() {
		switch v := recover(); v.(type) {
		case nil:
		case crashed:
			err = nil
		default:
			panic(v)
		}
	}()
	return fn()
}

func id(order int) string { return fmt.Sprintf("order-%d", order) }
