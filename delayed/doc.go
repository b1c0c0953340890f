// Package delayed brings messages back that middleware.DelayedRetry has put aside.
//
//	st, err := sqlstore.New(db)
//	sub, err := delayed.Subscriber(sub, st, delayed.Config{Handler: "billing"})
//	router.AddConsumerHandler("billing", "orders", sub, handle)
//
// The subscriber hands out what the other one does, and beside that the messages stored for the handler
// that are due, on the same channel: the handler and its middlewares do not notice. Any number of
// processes may run a handler of the same name; each stored message goes to one of them.
package delayed
