package forwarder

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pattern matches topics as the bindings of an AMQP topic exchange do: words are separated by dots, *
// stands for one word, # for any number of words, none included.
type pattern []string

func parsePattern(text string) (pattern, error) {
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

// matches reports whether the pattern takes a topic.
func (p pattern) matches(topic string) bool {
	return p.takes(strings.Split(topic, "."), false)
}

// covers reports whether the pattern takes whatever the other one takes.
func (p pattern) covers(other pattern) bool {
	return p.normal().takes(other.normal(), true)
}

// takes matches words. Wild says that they are a pattern themselves: a word * is then any one word, and #
// any number of them.
func (p pattern) takes(words []string, wild bool) bool {
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
func (p pattern) normal() pattern {
	var n pattern
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

// patterns matches what one of them matches.
type patterns []pattern

func (ps patterns) match(topic string) bool {
	return slices.ContainsFunc(ps, func(p pattern) bool { return p.matches(topic) })
}
