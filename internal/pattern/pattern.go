// Package pattern matches names of topics as the bindings of an AMQP topic exchange do: words are separated
// by dots, * stands for one word, # for any number of words, none included.
package pattern

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pattern is one pattern, in words.
type Pattern []string

// Parse reads a pattern.
func Parse(text string) (Pattern, error) {
	if text == "" {
		return nil, errors.New("the pattern is empty: # matches every topic")
	}
	words := strings.Split(text, ".")
	for _, word := range words {
		switch {
		case word == "*", word == "#":
		case word == "":
			return nil, fmt.Errorf("pattern %q has an empty word", text)
		case strings.ContainsAny(word, "*#"):
			return nil, fmt.Errorf("pattern %q: * and # stand for whole words, between dots", text)
		}
	}
	return words, nil
}

// Matches reports whether the pattern takes a topic.
func (p Pattern) Matches(topic string) bool {
	return p.takes(strings.Split(topic, "."), false)
}

// Covers reports whether the pattern takes whatever the other one takes.
func (p Pattern) Covers(other Pattern) bool {
	return p.normal().takes(other.normal(), true)
}

// takes matches words. Wild says that they are a pattern themselves: a word * is then any one word, and #
// any number of them.
func (p Pattern) takes(words []string, wild bool) bool {
	if len(p) == 0 {
		return len(words) == 0
	}
	if p[0] == "#" {
		for skip := 0; skip <= len(words); skip++ {
			if p[1:].takes(words[skip:], wild) {
				return true
			}
		}
		return false
	}
	if len(words) == 0 || wild && words[0] == "#" {
		return false
	}
	return (p[0] == "*" || p[0] == words[0]) && p[1:].takes(words[1:], wild)
}

// normal puts the stars of a run of wildcards first, and merges its hashes: #.* takes what *.# takes.
func (p Pattern) normal() Pattern {
	var n Pattern
	hash := false
	for _, word := range p {
		if word == "#" {
			hash = true
			continue
		}
		if hash && word != "*" {
			n, hash = append(n, "#"), false
		}
		n = append(n, word)
	}
	if hash {
		n = append(n, "#")
	}
	return n
}

// List matches what one of its patterns matches.
type List []Pattern

// Matches reports whether one of them takes a topic.
func (l List) Matches(topic string) bool {
	return slices.ContainsFunc(l, func(p Pattern) bool { return p.Matches(topic) })
}
