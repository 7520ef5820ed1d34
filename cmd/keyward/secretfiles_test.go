package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/syncgram/keyward/internal/keywardtest"
)

// R7: files as systemd (LoadCredential= with User=) and Kubernetes (fsGroup) deliver them: owned by
// root, mode 0440, read by group. The server runs as another user, where the test may start one: as
// root.
func TestR7FilesOfAnotherUser(t *testing.T) {
	t.Parallel()
	root := os.Getuid() == 0
	const uid, gid = 65534, 65534
	for name, tt := range map[string]struct {
		mode os.FileMode
		code int // 0 = it serves
		want string
	}{
		"0440":                {0o440, 0, ""},
		"0640":                {0o640, 0, ""},
		"everybody can read":  {0o444, exitUsage, "chmod 640"},
		"the group can write": {0o660, exitUsage, "chmod 640"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp(
				"",
				"keyward-r7-",
			) // t.TempDir is below a folder that only root enters
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			credentials := filepath.Join(dir, "credentials")
			if err := os.Mkdir(credentials, 0o750); err != nil {
				t.Fatal(err)
			}
			masterKey := writeFile(t, credentials, "master.key", newMasterKeyLine(t, "k1")+"\n")
			hs256 := writeFile(t, credentials, "hs256", strings.Repeat("0123456789", 4))
			o := keywardtest.Options{Dir: dir}
			if root {
				o.User = &syscall.Credential{Uid: uid, Gid: gid}
			}
			o.Args = []string{"serve", "--listen=127.0.0.1:0", "--verify-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--database-url=sqlite:" + filepath.Join(dir, "keyward.db"),
				"--master-key-file=" + masterKey, "--jwt-hs256-secret-file=" + hs256, "--jwt-issuer=", "--jwt-audience="}
			for _, path := range []string{masterKey, hs256} {
				if err := os.Chmod(path, tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			if root {
				for path, owner := range map[string]int{masterKey: 0, hs256: 0, credentials: 0, dir: uid} {
					if err := os.Chown(path, owner, gid); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tt.code == 0 {
				p := keywardtest.Start(t, o)
				if code := p.Stop(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				return
			}
			p := keywardtest.Run(t, o)
			if code := p.Wait(t); code != tt.code || !strings.Contains(p.Stderr(), tt.want) {
				t.Errorf("exit code %d\n%s", code, p.Stderr())
			}
			// One rule for every file: the other one alone is enough.
			if err := os.Chmod(masterKey, 0o440); err != nil {
				t.Fatal(err)
			}
			p = keywardtest.Run(t, o)
			if code := p.Wait(t); code != tt.code ||
				!strings.Contains(p.Stderr(), "jwt-hs256-secret-file") {
				t.Errorf("the HS256 secret: exit code %d\n%s", code, p.Stderr())
			}
		})
	}
}
