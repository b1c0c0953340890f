package main

import (
	"math"
	"slices"
	"time"
)

// Sample is one run of one participant.
type Sample struct {
	Moved   int     `json:"moved"`   // messages, transactions, or whatever the case counts
	Seconds float64 `json:"seconds"` // for which it ran
	Cut     bool    `json:"cut"`     // it was stopped before it had moved all
	// CPU is what its own process used, in seconds; RSS the most memory it held, in bytes.
	CPU float64 `json:"cpu"`
	RSS int64   `json:"rss"`
	// Servers is what each server used meanwhile, in seconds of CPU.
	Servers map[string]float64 `json:"servers,omitempty"`
	// P50, P99 and P999 are latencies in milliseconds.
	P50  float64 `json:"p50,omitempty"`
	P99  float64 `json:"p99,omitempty"`
	P999 float64 `json:"p999,omitempty"`
	// Extra are figures of the case's own.
	Extra map[string]float64 `json:"extra,omitempty"`
	// Err is why the run says nothing.
	Err string `json:"err,omitempty"`
}

// Rate is what was moved in a second.
func (s Sample) Rate() float64 {
	if s.Seconds == 0 {
		return 0
	}
	return float64(s.Moved) / s.Seconds
}

// percentiles fills in the latencies.
func (s *Sample) percentiles(latencies []time.Duration) {
	if len(latencies) == 0 {
		return
	}
	slices.Sort(latencies)
	at := func(q float64) float64 {
		i := min(len(latencies)-1, int(math.Ceil(q*float64(len(latencies))))-1)
		return float64(latencies[max(i, 0)]) / float64(time.Millisecond)
	}
	s.P50, s.P99, s.P999 = at(0.5), at(0.99), at(0.999)
}

// Series are the runs of one participant of one case.
type Series struct {
	Case        string   `json:"case"`
	Participant string   `json:"participant"`
	Samples     []Sample `json:"samples"`
}

// figure reads one number of a sample.
type figure func(Sample) float64

func rate(s Sample) float64 { return s.Rate() }
func p50(s Sample) float64  { return s.P50 }
func p99(s Sample) float64  { return s.P99 }
func rssMB(s Sample) float64 {
	return float64(s.RSS) / 1e6
}
func cpuPerMessage(s Sample) float64 {
	if s.Moved == 0 {
		return math.NaN()
	}
	return s.CPU / float64(s.Moved) * 1e6
}
func serverPerMessage(name string) figure {
	return func(s Sample) float64 {
		used, ok := s.Servers[name]
		if !ok || s.Moved == 0 {
			return math.NaN()
		}
		return used / float64(s.Moved) * 1e6
	}
}
func extra(name string) figure {
	return func(s Sample) float64 {
		v, ok := s.Extra[name]
		if !ok {
			return math.NaN()
		}
		return v
	}
}

// spread is a median with the lowest and highest of the runs.
type spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// of is the spread of a figure over the runs that succeeded. Without one all of it is NaN.
func (s *Series) of(f figure) spread {
	var values []float64
	if s != nil {
		for _, sample := range s.Samples {
			if sample.Err == "" {
				values = append(values, f(sample))
			}
		}
	}
	return spreadOf(values)
}

func spreadOf(values []float64) spread {
	values = slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(values) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(values)
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Low: values[0], High: values[n-1]}
}

// ratio compares two series round by round: both of a round ran one after the other, on a machine in
// the same mood.
func ratio(a, b *Series, f figure) spread {
	if a == nil || b == nil {
		return spreadOf(nil)
	}
	var values []float64
	for i := range min(len(a.Samples), len(b.Samples)) {
		if x, y := a.Samples[i], b.Samples[i]; x.Err == "" && y.Err == "" && f(y) != 0 {
			values = append(values, f(x)/f(y))
		}
	}
	return spreadOf(values)
}
