package half

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Callback asks remote producers what became of a local transaction: it POSTs
//
//	{"id": "...", "topic": "...", "prepared_at": "2006-01-02T15:04:05Z", "checks": 0}
//
// to the check_url that came with the message, and wants status 200 and
//
//	{"verdict": "committed"}    or "rolled_back" or "unknown"
//
// Everything else, another status or an empty body above all, counts as unknown. What a Checker promises
// with WasRolledBack, the producer promises with rolled_back. Redirects are not followed, no proxy is used.
type Callback struct {
	// Allow are the URLs under which a check_url must lie, as "https://orders.internal/checks/": scheme,
	// host and port are the same, and the path begins with this one's. At least one.
	Allow []string
	// AllowLocal permits addresses that are loopback or link-local. The address is looked at when the
	// connection is made, so that a name cannot hide it.
	AllowLocal bool
	// Header, if set, adds to each request, for example a credential.
	Header func(r *http.Request)

	client *http.Client
	allow  []*url.URL
}

const maxAnswer = 64 << 10

func (c *Callback) check() error {
	var errs []error
	if len(c.Allow) == 0 {
		errs = append(errs, errors.New("half: Callback.Allow is empty: no check_url would be permitted"))
	}
	c.allow = nil
	for _, text := range c.Allow {
		u, err := parseURL(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("half: Callback.Allow: %w", err))
			continue
		}
		c.allow = append(c.allow, u)
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: c.refuse}
	c.client = &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return errors.Join(errs...)
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("it is not a URL") // the cause would quote it, with its credentials
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, errors.New("want an absolute URL with http or https")
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("a URL with credentials or a fragment is refused")
	}
	return u, nil
}

// permits says why a check_url is refused.
func (c *Callback) permits(text string) error {
	if len(text) > 2000 {
		return errors.New("half: check_url is longer than 2000 bytes")
	}
	u, err := parseURL(text)
	if err != nil {
		return fmt.Errorf("half: check_url: %w", err)
	}
	for _, a := range c.allow {
		if u.Scheme == a.Scheme && strings.EqualFold(u.Host, a.Host) && below(u.Path, a.Path) {
			return nil
		}
	}
	return errors.New("half: check_url is not below one of the permitted URLs")
}

// below reports whether a path is another or lies under it. One with dots in it could climb out.
func below(path, base string) bool {
	for _, part := range strings.Split(path, "/") {
		if part == ".." || part == "." {
			return false
		}
	}
	base = strings.TrimSuffix(base, "/")
	return path == base || strings.HasPrefix(path, base+"/")
}

// refuse looks at the address that is about to be dialled.
func (c *Callback) refuse(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("half: check_url: %w", err)
	}
	ip := addr.Addr().Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() || !c.AllowLocal && (ip.IsLoopback() || ip.IsLinkLocalUnicast()) {
		return errors.New("half: check_url leads to a local address")
	}
	return nil
}

// ask asks once.
func (c *Callback) ask(ctx context.Context, h stored) (Verdict, error) {
	if err := c.permits(h.callback); err != nil {
		return Unknown, err
	}
	body, err := json.Marshal(struct {
		ID         string    `json:"id"`
		Topic      string    `json:"topic"`
		PreparedAt time.Time `json:"prepared_at"`
		Checks     int       `json:"checks"`
	}{h.ID, h.Topic, h.PreparedAt, h.Checks})
	if err != nil {
		return Unknown, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.callback, bytes.NewReader(body))
	if err != nil {
		return Unknown, errors.New("half: check_url: no request can be made of it")
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Header != nil {
		c.Header(req)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return Unknown, fmt.Errorf("half: check_url: %w", unwrapURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Unknown, fmt.Errorf("half: check_url answered status %d", resp.StatusCode)
	}
	return readVerdict(io.LimitReader(resp.Body, maxAnswer))
}

func readVerdict(body io.Reader) (Verdict, error) {
	var answer struct {
		Verdict string `json:"verdict"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return Unknown, errors.New("half: check_url answered no JSON object")
	}
	switch answer.Verdict {
	case "committed":
		return WasCommitted, nil
	case "rolled_back":
		return WasRolledBack, nil
	case "unknown":
		return Unknown, nil
	}
	return Unknown, errors.New(`half: check_url answered without a "verdict" of committed, rolled_back or unknown`)
}

// unwrapURL drops the URL, whose query may hold a secret.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
