package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/syncgram/keyward/api"
	"github.com/syncgram/keyward/internal/seal"
)

type masterKeyCmd struct {
	New    masterKeyNewCmd    `cmd:"" help:"Draw a master key."`
	Rotate masterKeyRotateCmd `cmd:"" help:"Make the first key of a running server's master keys the database's."`
}

type masterKeyNewCmd struct {
	ID   string `name:"id" help:"The key's id, instead of one made from the date." placeholder:"ID"`
	File string `type:"path" help:"Write it to this file, before the keys that are in it, instead of the standard output." placeholder:"FILE"`
}

// Help implements kong.HelpProvider.
func (masterKeyNewCmd) Help() string {
	return `Without --file the line goes to the standard output. With --file a new file is readable by its owner alone, and a file that is there keeps its keys, its mode and its owner; the new key is its first. A running server goes on under the key the database has until ` + "`keyward master-key rotate`" + `.

Example:

    keyward master-key new --file /etc/keyward/master.key`
}

// Run draws a key.
func (c *masterKeyNewCmd) Run(t *terminal) error {
	line, err := seal.NewLine(c.ID)
	if err != nil {
		return wrong("--id: %w", err)
	}
	if c.File == "" {
		_, err := fmt.Fprintln(t.out, line)
		return err
	}
	if err := addMasterKey(c.File, line); err != nil {
		return err
	}
	id, _, _ := strings.Cut(line, ":")
	_, err = fmt.Fprintf(t.out, "The key %s is the first in %s.\nKeep a copy of the file where the database's backups are not.\n", id, c.File)
	return err
}

// addMasterKey puts a line before what is in a master key file, which is replaced in one step.
func addMasterKey(path, line string) error {
	content := []byte(line + "\n")
	if _, err := os.Stat(path); err == nil {
		if _, err := seal.Load(path); err != nil {
			return err // nothing is built on a file that no server would accept
		}
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content = append(content, old...)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := seal.Parse(content); err != nil {
		return err
	}
	return writePrivate(path, content)
}

// writePrivate writes a file that only its owner can read and that is never seen half written. One
// that is there keeps its mode and its owner.
func writePrivate(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".keyward-*") // made 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one to tell
		}
	}()
	if old, statErr := os.Stat(path); statErr == nil {
		err = keepOwner(f, old)
	}
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

type masterKeyRotateCmd struct {
	connection
	format
}

// Help implements kong.HelpProvider.
func (masterKeyRotateCmd) Help() string {
	return `The server reads its master keys again, makes the first one the database's, and authenticates every row again under it. Nothing stops meanwhile, and repeating it is safe. It tells which keys may then leave the files.

Every node must have the new key first, in any place of its file: the rotation has them read their files again, waits for up to 20 seconds, and then says which nodes lack the key and changes nothing.

Example, with one file for all nodes:

    keyward master-key new --file /etc/keyward/master.key
    keyward master-key rotate`
}

// Run has the server rotate.
func (c *masterKeyRotateCmd) Run(ctx context.Context, t *terminal) error {
	cl, err := c.connection.open()
	if err != nil {
		return err
	}
	p := t.progress("Authenticating every row again")
	var r api.Reseal
	err = cl.call(ctx, http.MethodPost, "/v1/master-key/rotate", nil, &r)
	p.done()
	if err != nil {
		return err
	}
	return c.show(t, r, func() error {
		retire := "none yet"
		if len(r.RetireableKeyIDs) > 0 {
			retire = strings.Join(r.RetireableKeyIDs, ", ")
		}
		rows := [][2]string{
			{"rows authenticated again", strconv.FormatInt(r.RowsResealed, 10)},
			{"audit entries", strconv.FormatInt(r.AuditResealed, 10)},
			{"may leave the files", retire},
		}
		if r.KeptAnswers > 0 {
			rows = append(rows, [2]string{"answers under old keys", fmt.Sprintf("%d, gone within 24 hours", r.KeptAnswers)})
		}
		return t.sheet(cell{"authenticated under " + r.MasterKeyID, green}, rows)
	})
}
