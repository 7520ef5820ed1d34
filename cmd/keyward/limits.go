package main

import (
	"github.com/syncgram/keyward/internal/server"
	"github.com/syncgram/keyward/internal/sqlstore"
)

// How many writes, and reads for lists, are under way at once on each database. On PostgreSQL the
// writers' connections wait for the lock behind each other, so that it is never free between two;
// SQLite has one writer. Lists leave half of the readers to others.
var (
	writesAtOnce = map[string]int{sqlstore.SQLite: 1, sqlstore.Postgres: 8}
	readsAtOnce  = map[string]int{sqlstore.SQLite: 2, sqlstore.Postgres: 4}
)

// connectionLimits divides the descriptors of this process among its listeners.
func (cfg *nodeConfig) connectionLimits() (map[string]server.ConnectionLimits, error) {
	listeners := []string{"public", "verification", "admin"}
	if cfg.extAuthzListen != "" {
		listeners = append(listeners, "extauthz")
	}
	descriptors := descriptorLimit()
	limits, ok := server.ConnectionShares(descriptors, cfg.maxConnections, listeners)
	if !ok {
		return nil, wrong("--max-connections (KEYWARD_MAX_CONNECTIONS): %d listeners with so many connections, and the database, need more than the %d files that this process may open (ulimit -n)", len(listeners), descriptors)
	}
	return limits, nil
}
