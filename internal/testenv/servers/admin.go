package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Admin speaks to RabbitMQ's management API.
type Admin struct {
	base   string
	client http.Client
}

// NewAdmin takes the URL of the API, with user and password.
func NewAdmin(base string) *Admin {
	// Connections that stay open would be leaks to the tests that look for those.
	return &Admin{base: base, client: http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

// Ping asks whether the API answers.
func (a *Admin) Ping(ctx context.Context) error {
	return a.do(ctx, http.MethodGet, "/api/whoami", nil)
}

// CreateVhost creates a virtual host that the API's user may use.
func (a *Admin) CreateVhost(ctx context.Context, name string) error {
	if err := a.do(ctx, http.MethodPut, "/api/vhosts/"+url.PathEscape(name), nil); err != nil {
		return err
	}
	base, err := url.Parse(a.base)
	if err != nil {
		return fmt.Errorf("%s is not a URL", AdminVariable)
	}
	all := map[string]string{"configure": ".*", "write": ".*", "read": ".*"}
	path := "/api/permissions/" + url.PathEscape(name) + "/" + url.PathEscape(base.User.Username())
	return a.do(ctx, http.MethodPut, path, all)
}

// DeleteVhost deletes a virtual host with all that is in it, and closes its connections.
func (a *Admin) DeleteVhost(ctx context.Context, name string) error {
	return a.do(ctx, http.MethodDelete, "/api/vhosts/"+url.PathEscape(name), nil)
}

func (a *Admin) do(ctx context.Context, method, path string, body any) error {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, &content)
	if err != nil {
		return fmt.Errorf("management: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("management: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("management: %s %s: %s: %s", method, path, resp.Status, text)
	}
	return nil
}

// dialer bounds a driver's dial and handshake by ctx.
func dialer(ctx context.Context) func(network, addr string) (net.Conn, error) {
	return func(network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(5 * time.Second)
		}
		return conn, conn.SetDeadline(deadline)
	}
}
