package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/syncgram/keyward/internal/sqlstore"
)

type migrateCmd struct {
	database
	format
}

// Help implements kong.HelpProvider.
func (migrateCmd) Help() string {
	return `A server does this by itself when it starts. Run it before, when the servers' own account may not change the schema. Any number of them may run at once.

Example:

    keyward migrate --database-url "postgres://owner@db/keyward?sslmode=verify-full"`
}

// Run migrates.
func (c *migrateCmd) Run(ctx context.Context, t *terminal) error {
	if err := c.database.check(); err != nil {
		return err
	}
	p := t.progress("Migrating")
	o := c.database.options()
	o.Logger = slog.New(slog.NewTextHandler(t.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	from, to, err := sqlstore.Migrate(ctx, o)
	p.done()
	if err != nil {
		return unfit(err)
	}
	v := struct {
		From int64 `json:"from"`
		To   int64 `json:"to"`
	}{from, to}
	return c.show(t, v, func() error {
		said := fmt.Sprintf("The schema is at version %d; nothing to do.", to)
		if from != to {
			said = fmt.Sprintf("The schema went from version %d to %d.", from, to)
		}
		_, err := fmt.Fprintln(t.out, said)
		return err
	})
}
