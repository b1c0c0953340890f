package main

import (
	"fmt"
	"math"
	"strings"
)

// sweepSection writes one table and one plot for each knob: a row for each value, the default in bold.
func (r *report) sweepSection(b *strings.Builder, cases []benchCase, folder string) error {
	fmt.Fprintf(b, "Measured %s on %s; messages of 1 KiB without keys. In brackets: of the default, in the same round.\n\n", r.Date, r.Machine)
	for len(cases) > 0 {
		n := 1
		for n < len(cases) && cases[n].swept.knob.name == cases[0].swept.knob.name {
			n++
		}
		if err := r.knobSection(b, cases[:n], folder); err != nil {
			return err
		}
		cases = cases[n:]
	}
	return nil
}

func (r *report) knobSection(b *strings.Builder, cases []benchCase, folder string) error {
	k := cases[0].swept.knob
	fmt.Fprintf(b, "### %s\n\n%s\n\n", k.title, k.text)
	rows := [][]string{{""}}
	for _, c := range cases {
		for _, col := range c.swept.figure {
			rows[0] = append(rows[0], strings.TrimSuffix(c.swept.place+", "+col.head, ", "))
		}
	}
	add := func(head, who string) {
		row := []string{head}
		for _, c := range cases {
			row = append(row, r.knobCells(c, who)...)
		}
		rows = append(rows, row)
	}
	known := map[string]bool{}
	for _, v := range k.of(scales[r.Scale]) {
		head := fmt.Sprintf("%d%s", v, k.unit)
		if v == k.normal {
			head = "**" + head + "**"
		}
		add(head, k.label(v))
		known[k.label(v)] = true
	}
	for _, c := range cases {
		for _, one := range c.contenders {
			if !known[one.name] {
				add(one.name, one.name) // something else to compare with
			}
		}
	}
	writeTable(b, rows)
	return savePlot(b, r.knobPlot(cases), k.title, folder, "sweep/"+k.name)
}

// knobCells are the figures of one value in one place.
func (r *report) knobCells(c benchCase, who string) (cells []string) {
	for i, col := range c.swept.figure {
		text := cell(r.find(c.name, who).of(col.figure), col.digits, false)
		if text != "" && i == 0 && c.compare != nil && who != c.compare.base {
			share := ratio(r.find(c.name, who), r.find(c.name, c.compare.base), rate).times(100)
			text += " (" + cell(share, 0, false) + " %)"
		}
		cells = append(cells, text)
	}
	return cells
}

// knobPlot draws a line for each place: of rates, in percent of the default.
func (r *report) knobPlot(cases []benchCase) string {
	k := cases[0].swept.knob
	var marks, names []string
	var lines [][]spread
	for _, v := range k.of(scales[r.Scale]) {
		marks = append(marks, fmt.Sprintf("%d%s", v, k.unit))
	}
	title, unit, rates := k.title+": rate, of the default", " %", cases[0].compare != nil
	if !rates {
		title, unit = k.title+": latency", " ms"
	}
	for _, c := range cases {
		if rates != (c.compare != nil) {
			continue // another axis
		}
		figures := c.swept.figure
		if rates {
			figures = figures[:1]
		}
		for _, col := range figures {
			var line []spread
			for _, v := range k.of(scales[r.Scale]) {
				s := r.find(c.name, k.label(v))
				value := s.of(col.figure)
				if rates {
					value = ratio(s, r.find(c.name, c.compare.base), rate).times(100)
				}
				line = append(line, value)
			}
			names, lines = append(names, strings.TrimSuffix(c.swept.place+", "+col.head, ", ")), append(lines, line)
		}
	}
	return plotLines(title, unit, marks, names, lines)
}

// lineColours tell lines apart, also for those who see fewer colours.
var lineColours = []string{"#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#718096", "#b83280"}

// plotLines draws a line for each series over the same marks, from zero.
func plotLines(title, unit string, marks, names []string, lines [][]spread) string {
	high := 0.0
	for _, line := range lines {
		for _, v := range line {
			if !math.IsNaN(v.High) {
				high = max(high, v.High)
			}
		}
	}
	if high == 0 || len(marks) < 2 {
		return ""
	}
	const left, top, height, right = 60, 40, 240, 190
	width := float64(plotWidth - left - right)
	step := round(high / 4)
	high = math.Ceil(high/step) * step
	x := func(i int) float64 { return left + width*float64(i)/float64(len(marks)-1) }
	y := func(v float64) float64 { return top + height*(1-v/high) }
	var b strings.Builder
	beginPlot(&b, title, top+height+40)
	for v := 0.0; v <= high; v += step {
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#d9dee3"/>`+"\n", left, y(v), left+width, y(v))
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end" fill="#222222">%s%s</text>`+"\n", left-6, y(v)+4, number(v, digitsOf(v)), unit)
	}
	for i, mark := range marks {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#222222">%s</text>`+"\n", x(i), top+height+20, mark)
	}
	for n, line := range lines {
		colour := lineColours[n%len(lineColours)]
		var points []string
		for i, v := range line {
			if math.IsNaN(v.Median) {
				continue
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(v.Median)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x(i), y(v.Median), colour)
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x(i), y(v.Low), x(i), y(v.High), colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="3.5" fill="%s"/>`+"\n", left+width+20, top+10+n*20, colour)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#222222">%s</text>`+"\n", left+width+30, top+14+n*20, names[n])
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// round is the next larger 1, 2 or 5 with zeros.
func round(v float64) float64 {
	ten := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 5} {
		if v <= n*ten {
			return n * ten
		}
	}
	return 10 * ten
}
