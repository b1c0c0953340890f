package servers

import (
	"context"
	"errors"
)

func composeAvailable(ctx context.Context) error { return errors.New("todo") }
func (p *Pool) startContainer(ctx context.Context, product *product, opts Options) (*Server, error) {
	return nil, errors.New("todo")
}
