package outbox

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// scanRow reads one row. One that cannot be decoded is returned with its Err set, so that it can be
// set aside instead of stopping all behind it.
func scanRow(row txn.Scanner, more ...any) (Row, error) {
	var (
		r        Row
		metadata []byte
		created  int64
	)
	dest := []any{&r.Pos, &r.ID, &r.Lane, &r.Topic, &r.Key, &r.Attempts, &r.Size, &metadata, &r.Payload, &created, &r.Cancellable}
	if err := row.Scan(append(dest, more...)...); err != nil {
		return Row{}, err
	}
	r.CreatedAt = time.UnixMicro(created).UTC()
	var err error
	if r.Metadata, err = decodeMetadata(metadata, r.Key); err != nil {
		r.Err = fmt.Errorf("outbox: row %d: %w", r.Pos, err)
	}
	return r, nil
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

var arrayEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func textArray(values []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		_, _ = arrayEscaper.WriteString(&b, v)
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

// parts is of how many lanes and topics a read wants rows.
func (q Read) parts() int { return len(q.Lanes) * len(q.Topics) }

// Read looks at shareOfMany times the fair part where the rows come from many lanes, and else at shareOfFew.
const (
	shareOfMany = 2
	shareOfFew  = 4
)

// fromFew reports whether a read was filled from less than half of its lanes and topics, and whether it was filled.
func fromFew(q Read, rows []Row) (few, full bool) {
	if len(rows) < q.MaxRows {
		return false, false
	}
	found := make(map[readPart]struct{})
	for _, r := range rows {
		found[readPart{r.Lane, r.Topic}] = struct{}{}
	}
	return 2*len(found) < q.parts(), true
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
