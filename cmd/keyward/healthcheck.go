package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

type healthcheckCmd struct {
	connection
	Timeout duration `default:"3s" help:"How long to wait for the answer."`
}

// Help implements kong.HelpProvider.
func (healthcheckCmd) Help() string {
	return `It asks /readyz. The exit code is 0 when the server is ready and 1 when it is not or cannot be reached. It needs no token.

Example, in a container's definition:

    HEALTHCHECK CMD ["keyward", "healthcheck"]`
}

// Run asks once.
func (c *healthcheckCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.openVerification()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
	defer cancel()
	err = cl.call(ctx, "GET", "/readyz", nil, nil)
	var answered *answerError
	switch {
	case errors.As(err, &answered):
		return fmt.Errorf("not ready: %w", err)
	case err != nil:
		return err
	}
	_, err = fmt.Fprintln(t.out, "ready")
	return err
}
