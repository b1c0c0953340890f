package outbox

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// rowReader reads the rows of one answer, each into the same memory.
type rowReader struct {
	row      Row
	metadata string
	created  int64
	dest     []any
}

// newRowReader makes a reader of rows that have columns behind a Row's own: more is where those go.
func newRowReader(more ...any) *rowReader {
	in := &rowReader{}
	r := &in.row
	in.dest = append([]any{&r.Pos, &r.ID, &r.Lane, &r.Topic, &r.Key, &r.Attempts, &r.Size, &in.metadata, &r.Payload,
		&in.created, &r.Cancellable}, more...)
	return in
}

// read reads one row. One that cannot be decoded is returned with its Err set, so that it can be set aside
// instead of stopping all behind it.
func (in *rowReader) read(row txn.Scanner) (Row, error) {
	in.row = Row{} // the payload is not to be written over
	if err := row.Scan(in.dest...); err != nil {
		return Row{}, err
	}
	in.row.CreatedAt = time.UnixMicro(in.created).UTC()
	var err error
	if in.row.Metadata, err = decodeMetadata(in.metadata, in.row.Key); err != nil {
		in.row.Err = fmt.Errorf("outbox: row %d: %w", in.row.Pos, err)
	}
	return in.row, nil
}

// Arrays travel as text, because no two drivers agree on how to send them. None is ever NULL: an empty
// one is {}.

func intArray[T ~int | ~int64](values []T) string {
	b := append(make([]byte, 0, 2+8*len(values)), '{')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(v), 10)
	}
	return string(append(b, '}'))
}

// parseIntArray reads what a database answers for an array of numbers.
func parseIntArray[T ~int | ~int64](text string) (values []T) {
	text = strings.Trim(text, "{}")
	for text != "" {
		one, rest, _ := strings.Cut(text, ",")
		n, _ := strconv.ParseInt(one, 10, 64) // it is the database's own number
		values, text = append(values, T(n)), rest
	}
	return values
}

var arrayEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func textArray(values []string) string {
	size := 2
	for _, v := range values {
		size += 3 + len(v)
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteByte('{')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		if strings.IndexByte(v, '"') < 0 && strings.IndexByte(v, '\\') < 0 {
			b.WriteString(v) // as nearly all are
		} else {
			_, _ = arrayEscaper.WriteString(&b, v)
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

func positions(rows []Ref) []int64 {
	out := make([]int64, len(rows))
	for i, r := range rows {
		out[i] = r.Pos
	}
	return out
}

func ids(rows []Ref) []string {
	out := make([]string, len(rows))
	for i, r := range rows {
		out[i] = r.ID
	}
	return out
}

func lanesAndEpochs(grants []Grant) (lanes []int, epochs []int64) {
	for _, g := range grants {
		lanes = append(lanes, g.Lane)
		epochs = append(epochs, g.Epoch)
	}
	return lanes, epochs
}

// share is how many rows of one lane and topic a read looks at first: so many times its fair part, so
// that a full backlog is not read once for each lane.
func share(q Read, times int) int {
	return min(q.MaxRows, max(16, times*q.MaxRows/q.parts()))
}

// shareOfFew is how many times its fair part a read looks at that does not know from how few lanes the rows come.
const shareOfFew = 4

// parts is of how many lanes and topics a read wants rows.
func (q Read) parts() int { return len(q.Lanes) * len(q.Topics) }

// spread is of how many lanes and topics rows are.
func spread(rows []Row) int {
	found := make(map[readPart]struct{})
	for _, r := range rows {
		found[readPart{r.Lane, r.Topic}] = struct{}{}
	}
	return len(found)
}

// readPart is where a row comes from.
type readPart struct {
	lane  int
	topic string
}

// short reports whether a read that looked at perPart rows of each lane and topic may have missed some
// that it had room for.
func short(q Read, rows []Row, candidates, perPart int) bool {
	if perPart >= q.MaxRows || len(rows) >= q.MaxRows || len(rows) < candidates {
		return false // it looked at all, or is full by rows, or by bytes
	}
	counts := make(map[readPart]int)
	for _, r := range rows {
		p := readPart{r.Lane, r.Topic}
		if counts[p]++; counts[p] == perPart {
			return true
		}
	}
	return false
}
