package redisstreams

// entry is one message on its way into a stream.
type entry struct {
	index int   // in the batch
	group int   // in its stream's groups; 0 = none
	args  []any // of XADD, its name first: see encode
	bytes int
}

// keyGroup is the messages of a stream of which none may go in behind a failed one: those of a key.
type keyGroup struct {
	members int  // in the batch
	stopped bool // one of them failed
}

// stream is what of a batch goes to one topic.
type stream struct {
	topic  string
	arg    any // the topic as an argument
	left   []entry
	groups []keyGroup // the first stands for all that have none
	byName map[string]int
}

// newStream makes one with room for n entries.
func newStream(topic string, n int) *stream {
	return &stream{topic: topic, arg: topic, left: make([]entry, 0, n), groups: make([]keyGroup, 1), byName: map[string]int{"": 0}}
}

func (s *stream) add(e entry, group string) {
	e.group = s.number(group)
	s.groups[e.group].members++
	s.left = append(s.left, e)
}

func (s *stream) number(name string) int {
	n, ok := s.byName[name]
	if !ok {
		n = len(s.groups)
		s.byName[name] = n
		s.groups = append(s.groups, keyGroup{})
	}
	return n
}

// lone reports whether no other message of the batch has to stop when this one fails.
func (s *stream) lone(e entry) bool { return e.group == 0 || s.groups[e.group].members == 1 }

// stop keeps back what is behind the entry in its group.
func (s *stream) stop(e entry) { s.groups[e.group].stopped = e.group != 0 }

func (s *stream) stopped(e entry) bool { return s.groups[e.group].stopped }
