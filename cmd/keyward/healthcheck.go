package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

type healthcheckCmd struct {
	verifyConnection
	Timeout duration `default:"3s" help:"How long to wait for the answer."`
}

// Help implements kong.HelpProvider.
func (healthcheckCmd) Help() string {
	return `It asks /readyz. The exit code is 0 when the server is ready and 1 when it is not or cannot be reached. It needs no credential, and with the server's own settings no flag.

Example, in a container's definition:

    HEALTHCHECK CMD ["keyward", "healthcheck"]`
}

// Run asks once.
func (c *healthcheckCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.verifyConnection.open(nil) // readiness needs no credential, not even one that can be read
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
