package txn

import "context"

// node is one open transaction in a context, innermost first. A node with a nil tx hides the outer
// transaction of that database.
type node struct {
	identity any
	tx       *Tx
	outer    *node
}

type contextKey struct{}

func nodes(ctx context.Context) *node {
	n, _ := ctx.Value(contextKey{}).(*node)
	return n
}

func with(ctx context.Context, identity any, t *Tx) context.Context {
	return context.WithValue(ctx, contextKey{}, &node{identity: identity, tx: t, outer: nodes(ctx)})
}

// Masked returns ctx without any transaction.
func Masked(ctx context.Context) context.Context {
	if nodes(ctx) == nil {
		return ctx
	}
	return context.WithValue(ctx, contextKey{}, (*node)(nil))
}

// From returns the transaction of that database in ctx. It may have ended: see Err.
func From(ctx context.Context, p Pool) (*Tx, bool) {
	return lookup(ctx, p.Identity())
}

func lookup(ctx context.Context, identity any) (*Tx, bool) {
	for n := nodes(ctx); n != nil; n = n.outer {
		if n.identity == identity {
			return n.tx, n.tx != nil
		}
	}
	return nil, false
}

// holds tells whether a transaction of that database is open around ctx, also one that is set aside.
func holds(ctx context.Context, identity any) bool {
	for n := nodes(ctx); n != nil; n = n.outer {
		if n.identity == identity && n.tx != nil && n.tx.holds() {
			return true
		}
	}
	return false
}

// Current returns the one transaction in ctx, or that of identity if it is not nil.
func Current(ctx context.Context, identity any) (*Tx, error) {
	if identity != nil {
		if t, ok := lookup(ctx, identity); ok {
			return t, nil
		}
		return nil, ErrNoTransaction
	}
	var found *Tx
	for n := nodes(ctx); n != nil; n = n.outer {
		if t, ok := lookup(ctx, n.identity); !ok || t == found {
			continue
		} else if found != nil {
			return nil, ErrAmbiguousTransaction
		} else {
			found = t
		}
	}
	if found == nil {
		return nil, ErrNoTransaction
	}
	return found, nil
}
