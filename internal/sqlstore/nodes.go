package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/syncgram/keyward/internal/keys"
	"github.com/syncgram/keyward/internal/seal"
)

// checkProtocol refuses a database that asks for a newer version of the lease protocol than this program's. The statements
// that grant a lease ask again each time: the gate may be raised while a node runs.
func (s *Store) checkProtocol(ctx context.Context) error {
	if s.nodes != nil {
		return nil
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var least int
	if err := s.reader.QueryRowContext(ctx, readProtocol).Scan(&least); err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	if least > keys.LeaseProtocol {
		return keys.ErrOutdated
	}
	return nil
}

// Nodes returns the nodes that serve, and the database's revision.
func (s *Store) Nodes(ctx context.Context) (nodes []keys.ServingNode, revision int64, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err = s.view(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := s.currentState(ctx, tx)
		if err != nil {
			return err
		}
		revision = st.revision
		if s.nodes != nil {
			nodes = s.nodes.list()
			return nil
		}
		rows, err := tx.QueryContext(ctx, everyNode)
		return each(rows, err, func(rows *sql.Rows) error {
			n, _, err := s.scanNode(rows)
			nodes = append(nodes, n)
			return err
		})
	})
	return nodes, revision, err
}

func (s *Store) scanNode(row scanner) (n keys.ServingNode, sl seal.Seal, err error) {
	var lease, ago int64
	var has string
	if err := row.Scan(&n.ID, &n.Address, &n.Version, &n.Protocol, &lease, &n.Applied, &ago, &sl.KeyID, &sl.MAC, &has); err != nil {
		return n, sl, err
	}
	n.Lease, n.RenewedAgo = time.Duration(lease)*time.Microsecond, time.Duration(ago)*time.Microsecond
	if id := s.databaseID.Load(); id != nil {
		n.DatabaseID = *id
	}
	n.MasterKeys = keysOfColumn(has)
	err = s.ring.CheckRow(keys.KindNode, n.Sealed(), sl)
	n.Genuine, n.Undecided = err == nil, errors.Is(err, seal.ErrUnknownKey)
	return n, sl, nil
}

// localNodes are the node rows of SQLite. Only one process can have the database open, so they are
// in its memory: a lease costs no write, goes on while the disk is full, and leaves nothing behind
// that the next process would have to wait for.
type localNodes struct {
	mu        sync.Mutex
	applied   map[string]int64 // by node id; guarded by mu, as all below
	of        map[string]keys.Node
	listeners []*func(keys.Announcement)
}

func (n *localNodes) register(node keys.Node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.applied[node.ID]; taken {
		return errors.New("sqlstore: this node is registered already")
	}
	n.applied[node.ID], n.of[node.ID] = -1, node
	return nil
}

// renew acknowledges applied if the database is at that mark. The row is written after the read, which is safe: a
// write that commits in between finds the row behind, and waits for the next renewal.
func (n *localNodes) renew(ctx context.Context, id string, applied keys.Mark, at func(context.Context, keys.Mark) (bool, error)) (keys.Outcome, error) {
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

func (n *localNodes) standing(id string, revision int64) keys.Standing {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := keys.Standing{Settled: true}
	_, st.Own = n.applied[id]
	for other, applied := range n.applied {
		if applied < revision {
			st.Behind++
		}
		st.Longest = max(st.Longest, n.of[other].Lease)
	}
	return st
}

func (n *localNodes) fence(revision int64) (fenced []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, applied := range n.applied {
		if applied < revision {
			delete(n.applied, id)
			delete(n.of, id)
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
	delete(n.of, id)
}

func (n *localNodes) list() (nodes []keys.ServingNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, node := range n.of {
		nodes = append(nodes, keys.ServingNode{Node: node, Protocol: keys.LeaseProtocol, Applied: n.applied[id], Genuine: true})
	}
	return nodes
}

func (n *localNodes) announce(a keys.Announcement) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, heard := range n.listeners {
		(*heard)(a)
	}
}

// listen calls heard under the lock.
func (n *localNodes) listen(ctx context.Context, heard func(keys.Announcement)) error {
	n.mu.Lock()
	n.listeners = append(n.listeners, &heard)
	n.mu.Unlock()
	<-ctx.Done()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners = slices.DeleteFunc(n.listeners, func(l *func(keys.Announcement)) bool { return l == &heard })
	return ctx.Err()
}
