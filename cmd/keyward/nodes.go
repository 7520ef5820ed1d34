package main

import (
	"context"
	"strconv"
	"time"

	"github.com/syncgram/keyward/api"
)

type nodesCmd struct {
	connection
	format
}

// Help implements kong.HelpProvider.
func (nodesCmd) Help() string {
	return `REVISION is the last write that a node acknowledged, LAG how many more there are, LEASE how long one renewal lasts. A node whose RENEWED is longer ago than that answers nothing from its memory.

Example:

    keyward nodes --output json`
}

// Run lists the nodes.
func (c *nodesCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	list, err := get[api.NodeList](ctx, cl, "/v1/nodes")
	if err != nil {
		return err
	}
	return c.show(t, list, func() error {
		rows := make([][]cell, len(list.Nodes))
		for i, n := range list.Nodes {
			id := cell{text: n.NodeID}
			if n.Self {
				id = cell{n.NodeID + " (asked)", bold}
			}
			revision, lag := strconv.FormatInt(n.Revision, 10), cell{text: strconv.FormatInt(n.Lag, 10)}
			if n.Revision < 0 {
				revision = "none"
			}
			if n.Lag > 0 {
				lag.style = yellow
			}
			renewed := cell{text: seconds(n.RenewedSecondsAgo) + " ago"}
			if n.RenewedSecondsAgo > n.LeaseSeconds {
				renewed.style = red
			}
			rows[i] = []cell{id, {text: n.Address}, {text: n.Version}, {text: revision}, lag, {text: seconds(n.LeaseSeconds)}, renewed}
		}
		return t.table([]string{"NODE", "ADDRESS", "VERSION", "REVISION", "LAG", "LEASE", "RENEWED"}, rows)
	})
}

// seconds is a number of seconds for people.
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
}
