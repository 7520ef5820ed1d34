package histories

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// What somebody does who can write to the whole database and has no master key (V8). The tables
// writer_… hold the rows as Keyward wrote them, writer_old rows as they were before.
const (
	beginWriting = `
		CREATE TABLE writer_old AS SELECT * FROM keys WHERE starts_with(id, '$KEYS');
		CREATE TABLE writer_keys AS SELECT * FROM keys WHERE false;
		CREATE TABLE writer_organizations AS SELECT * FROM organizations WHERE false;
		CREATE TABLE writer_audit AS SELECT * FROM audit WHERE false;
		CREATE OR REPLACE FUNCTION keep_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NOT starts_with(NEW.id, TG_ARGV[0]) THEN
				RETURN NEW;
			END IF;
			EXECUTE format('INSERT INTO writer_%s SELECT ($1).*', TG_TABLE_NAME) USING NEW;
			PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'listen%';
			RETURN OLD;
		END $$`

	// keepRows puts the older row back in the transaction that changes it, and ends the connections
	// that listen, so that no node is notified of the new one.
	keepRows = `
		CREATE TRIGGER keep_row BEFORE UPDATE ON keys
			FOR EACH ROW EXECUTE FUNCTION keep_row('$KEYS');
		CREATE TRIGGER keep_row BEFORE UPDATE ON organizations
			FOR EACH ROW EXECUTE FUNCTION keep_row('$ORGANIZATIONS')`

	// putOlderBack does so with the rows of keys that were revoked before.
	putOlderBack = `
		INSERT INTO writer_keys SELECT * FROM keys
			WHERE starts_with(id, '$KEYS') AND state = 'revoked';
		DELETE FROM keys WHERE id IN (SELECT id FROM writer_keys);
		INSERT INTO keys SELECT * FROM writer_old WHERE id IN (SELECT id FROM writer_keys)`

	takeEntries = `INSERT INTO writer_audit SELECT * FROM audit WHERE $ENTRIES;`

	// endWriting puts back everything that was taken.
	endWriting = `
		DROP TRIGGER IF EXISTS keep_row ON keys;
		DROP TRIGGER IF EXISTS keep_row ON organizations;
		DELETE FROM keys WHERE id IN (SELECT id FROM writer_keys);
		INSERT INTO keys
			SELECT DISTINCT ON (id) * FROM writer_keys ORDER BY id, revision DESC;
		DELETE FROM organizations WHERE id IN (SELECT id FROM writer_organizations);
		INSERT INTO organizations
			SELECT DISTINCT ON (id) * FROM writer_organizations ORDER BY id, revision DESC;
		DELETE FROM audit WHERE actor = 'nobody' OR sequence IN (SELECT sequence FROM writer_audit);
		INSERT INTO audit SELECT * FROM writer_audit;
		DROP TABLE writer_old, writer_keys, writer_organizations, writer_audit`
)

// editsOfLog are edits of the audit log, one for each round. The nodes close until it is whole: at
// once when it does not end where it should, otherwise when they load the database. No row of the
// clients loses its latest entry: a node that reads such a row denies it from then on.
var editsOfLog = []string{
	``,
	`INSERT INTO audit SELECT sequence + 1, at, 'nobody', action, organization_id, '', outcome, detail,
		remote_address, request_id, 0, hash, seal_key_id, seal FROM audit ORDER BY sequence DESC LIMIT 1`,
	strings.ReplaceAll(takeEntries, "$ENTRIES", `sequence = (SELECT max(sequence) / 2 FROM audit)`) +
		`UPDATE audit SET actor = 'nobody' WHERE sequence IN (SELECT sequence FROM writer_audit)`,
	strings.ReplaceAll(takeEntries, "$ENTRIES",
		`target_id IN (SELECT id FROM writer_keys) AND action = 'key.create'`) +
		`DELETE FROM audit WHERE sequence IN (SELECT sequence FROM writer_audit)`,
}

// edit runs statements as one transaction, in place of $KEYS and $ORGANIZATIONS what the ids of the
// batch of a key start with. No write is in progress meanwhile: one that misses an entry of the row
// it writes leaves a set hash that no later edit can undo.
func (w *crowd) edit(batch *key, statements string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	o := batch.organization.id
	statements = strings.NewReplacer("$KEYS", batch.id[:len("key_")+10],
		"$ORGANIZATIONS", o[:strings.LastIndexByte(o, '_')+1]).
		Replace(`SELECT one FROM meta FOR UPDATE;` + statements)
	conn, err := pgx.Connect(ctx, w.primary.Load().URL())
	if err == nil {
		defer conn.Close(ctx)
		_, err = conn.PgConn().Exec(ctx, statements).ReadAll()
	}
	if err != nil {
		w.tb.Fatalf("V8: the database could not be edited: %v", err)
	}
}

// editDatabase keeps rows of revoked keys and switched-off organizations from the nodes while
// they are written and for a while afterwards, puts older rows back, edits the audit log, swallows
// notifications and has a node load what is left. Then it puts everything back. Meanwhile a node
// may decide nothing, or deny. It never accepts what was answered to be revoked or off (V8): the
// checks find that. Afterwards all nodes decide again.
func (w *crowd) editDatabase(count int, r *rand.Rand) {
	var answered atomic.Int64 // writes whose rows were kept from the nodes at that time
	for i := range count {
		stocked := w.stock(6)
		older, revoked, off := stocked[:2], stocked[2:4], stocked[4:]
		for _, k := range off {
			w.turn(context.Background(), k.organization, true)
			w.turn(context.Background(), k.organization, false)
		}
		w.edit(stocked[0], beginWriting)
		for _, k := range older {
			w.revoke(context.Background(), nil, k)
		}
		for _, k := range stocked[:4] {
			k.edited = true
			k.withheld.Store(true)
		}

		var acting atomic.Bool
		acting.Store(true)
		w.edit(stocked[0], putOlderBack+";"+keepRows)
		var writing sync.WaitGroup
		write := func(do func()) {
			writing.Go(func() {
				if do(); acting.Load() {
					answered.Add(1)
				}
			})
		}
		for _, k := range revoked {
			write(func() { w.revoke(context.Background(), nil, k) })
		}
		for _, k := range off {
			write(func() { w.turn(context.Background(), k.organization, true) })
		}
		written := make(chan struct{})
		go func() { writing.Wait(); close(written) }()
		w.probeFor(3*time.Second, written, stocked)
		w.probeFor(between(r, 100*time.Millisecond, time.Second), nil, stocked)
		w.edit(stocked[0], editsOfLog[i%len(editsOfLog)])
		w.restart(w.nodes[r.IntN(len(w.nodes))])
		w.probeFor(between(r, 100*time.Millisecond, time.Second), nil, stocked)
		acting.Store(false)
		w.edit(stocked[0], endWriting)
		began := time.Now()
		w.heal()
		w.within("V8: service after the database was put back", time.Since(began), 2*time.Second)
		<-written

		// A write of the row has every node read it again.
		for _, k := range stocked[:4] {
			w.revoke(context.Background(), nil, k)
			k.withheld.Store(false)
		}
		for _, k := range off {
			if !k.organization.retired {
				w.turn(context.Background(), k.organization, false)
			}
			w.probeAll(k)
		}
	}
	if answered.Load() == 0 {
		w.tb.Error("V8: no write was answered while its row was kept from the nodes")
	}
	w.tb.Logf("V8: %d of %d writes were answered while their rows were kept from the nodes",
		answered.Load(), 4*count)
}

// probeFor asks all nodes about keys for a while, at most until done, and ends the connections that
// listen.
func (w *crowd) probeFor(d time.Duration, done <-chan struct{}, about []*key) {
	ended := time.After(d)
	for {
		if _, err := w.severListeners(); err != nil {
			w.tb.Error(err)
		}
		for _, n := range w.nodes {
			for _, k := range about {
				w.probe(n, k)
			}
		}
		select {
		case <-ended:
			return
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
