package main

import (
	"github.com/syncgram/keyward/internal/server"
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
