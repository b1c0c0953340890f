package main

// tasks are what a participant's process can be told to do.
var tasks = map[string]task{}

func init() {
	tasks = map[string]task{
		"drain-millrace":   drainOurs,
		"drain-stock":      drainStock,
		"drain-oagudo":     drainOagudo,
		"latency-millrace": latencyOurs,
		"latency-stock":    latencyStock,
		"forward-millrace": forwardOutside,
		"produce":          produce,
		"drain-replicas":   drainReplicas,
		"consume-millrace": consumeOurs,
		"consume-stock":    consumeStock,
		"confirm":          confirmOurs,
		"idle-millrace":    idleOurs,
		"raw-broker":       rawBroker,
		"raw-database":     rawDatabase,
	}
}
