package main

import (
	"net"
	"time"
)

// notifier tells systemd how a service of Type=notify is (sd_notify(3)). Without the variable
// NOTIFY_SOCKET it does nothing.
type notifier struct{ conn *net.UnixConn }

func newNotifier(env []string) notifier {
	name, _ := lookup(env, "NOTIFY_SOCKET")
	if name == "" {
		return notifier{}
	}
	if name[0] == '@' {
		name = "\x00" + name[1:] // a name in the abstract namespace
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return notifier{} // nobody listens, so nobody can be told
	}
	return notifier{conn}
}

// notifyTime bounds the wait for a service manager that does not read.
const notifyTime = time.Second

// send passes on a state. A message that is lost does no harm: systemd waits, or has ended.
func (n notifier) send(state string) {
	if n.conn != nil {
		_ = n.conn.SetWriteDeadline(time.Now().Add(notifyTime))
		_, _ = n.conn.Write([]byte(state))
	}
}

func (n notifier) close() {
	if n.conn != nil {
		_ = n.conn.Close()
	}
}
