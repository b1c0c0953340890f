package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Plots are drawn as plain SVG: bars with their spread, from zero unless the scale is logarithmic.

const (
	plotWidth  = 760
	labelWidth = 190
	valueWidth = 165
	barHeight  = 22
	barGap     = 8
	// titleLength is how many characters of the usual size fit.
	titleLength = 88
)

func beginPlot(b *strings.Builder, title string, height int) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="13">`+"\n", plotWidth, height)
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, height)
	size := min(14, 14*titleLength/float64(len([]rune(title)))) // a long one is written smaller
	fmt.Fprintf(b, `<text x="8" y="22" font-size="%.1f" font-weight="bold" fill="#222222">%s</text>`+"\n", size, html.EscapeString(title))
}

// plotBars draws one bar for each series, with a line from the lowest to the highest run. Where the largest
// is more than a hundred times the smallest, the scale is logarithmic, and says so.
func plotBars(title, unit string, digits int, names []string, values []spread) string {
	low, high := math.Inf(1), 0.0
	for _, v := range values {
		if v.Median > 0 {
			low = min(low, v.Median)
		}
		high = max(high, v.High)
	}
	if math.IsInf(low, 1) || high == 0 {
		return ""
	}
	logarithmic := high/low > 100
	space := float64(plotWidth - labelWidth - valueWidth)
	bottom := math.Pow(10, math.Floor(math.Log10(low))-0.3)
	x := func(v float64) float64 {
		if v <= 0 {
			return 0
		}
		if logarithmic {
			return max(0, math.Log(v/bottom)/math.Log(high/bottom)*space)
		}
		return v / high * space
	}
	if logarithmic {
		title += " (logarithmic)"
	}
	height := 40 + len(names)*(barHeight+barGap)
	var b strings.Builder
	beginPlot(&b, title, height)
	for i, name := range names {
		v := values[i]
		if math.IsNaN(v.Median) {
			continue
		}
		y := 36 + i*(barHeight+barGap)
		colour := "#9aa5b1"
		switch {
		case strings.HasPrefix(name, millraceName):
			colour = "#2b6cb0"
		case strings.HasPrefix(name, "limit"), name == rowOnly, name == silentName:
			colour = "#d9dee3"
		}
		middle := y + barHeight/2
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text>`+"\n", labelWidth-8, middle+5, html.EscapeString(name))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y, x(v.Median), barHeight, colour)
		if v.High > v.Low {
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%[2]d" stroke="#222222"/>`+"\n", labelWidth+x(v.Low), middle, labelWidth+x(v.High))
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#222222">%s %s</text>`+"\n", labelWidth+max(x(v.Median), x(v.High))+8, middle+5, number(v.Median, digits), unit)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
