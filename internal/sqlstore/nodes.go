package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/syncgram/keyward/internal/keys"
)

// localNodes are the node rows of SQLite. Only one process can have the database open, so they are
// in its memory: a lease costs no write, goes on while the disk is full, and leaves nothing behind
// that the next process would have to wait for.
type localNodes struct {
	mu      sync.Mutex
	applied map[string]int64 // by node id; guarded by mu
}

func (n *localNodes) register(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.applied[id]; taken {
		return errors.New("sqlstore: this node is registered already")
	}
	n.applied[id] = -1
	return nil
}

// renew acknowledges applied if the database is at that mark. The row is written after the read, which is safe: a
// write that commits in between finds the row behind, and waits for the next renewal.
func (n *localNodes) renew(ctx context.Context, id string, applied keys.Mark, at func(context.Context, keys.Mark) (bool, error)) (keys.Renewal, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, there := n.applied[id]; !there {
		return keys.Fenced, nil
	}
	current, err := at(ctx, applied)
	if err != nil {
		return keys.Fenced, fmt.Errorf("sqlstore: %w", err)
	}
	if !current {
		return keys.Lagging, nil
	}
	n.applied[id] = applied.Revision
	return keys.Renewed, nil
}

func (n *localNodes) behind(revision int64) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, applied := range n.applied {
		if applied < revision {
			count++
		}
	}
	return count
}

func (n *localNodes) fence(revision int64) (fenced []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, applied := range n.applied {
		if applied < revision {
			delete(n.applied, id)
			fenced = append(fenced, id)
		}
	}
	slices.Sort(fenced)
	return fenced
}

func (n *localNodes) leave(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.applied, id)
}
