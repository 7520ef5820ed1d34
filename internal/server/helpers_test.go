package server

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/syncgram/keyward/internal/keys"
)

// heldBarrier holds writes back while it is on.
type heldBarrier struct {
	keys.Barrier
	on               atomic.Bool
	entered, release chan struct{}
}

func (b *heldBarrier) Await(ctx context.Context, revision int64) error {
	if b.on.Load() {
		close(b.entered)
		<-b.release
	}
	return b.Barrier.Await(ctx, revision)
}

// failingBarrier does not know while it is on.
type failingBarrier struct {
	keys.Barrier
	on bool
}

func (b *failingBarrier) Await(ctx context.Context, revision int64) error {
	if b.on {
		return errors.New("no acknowledgement")
	}
	return b.Barrier.Await(ctx, revision)
}

// malformedBodies are texts that are no JSON object, or not one alone.
func malformedBodies() []string {
	list := []string{
		" ", "\n", "null", "true", "1", `"x"`, "[]", "[{}]", `{}{}`, `{} {}`, `{},`, `{}x`, `{}}`, `{}]`, "{}\x00", "\ufeff{}", "\x00{}",
		"{", "}", `{"`, `{"key_name`, `{"key_name"`, `{"key_name":`, `{"key_name":"`, `{"key_name":"k`, `{"key_name":"k"`, `{"key_name":"k",`, `{"key_name":"k",}`, `{,}`, `{,"key_name":"k"}`,
		`{"key_name" "k"}`, `{"key_name"="k"}`, `{"key_name":"k";"env":"live"}`, `{"key_name":"k" "env":"live"}`, `{"key_name"::"k"}`, `{"key_name":,}`, `{"key_name":}`,
		`{key_name:"k"}`, `{'key_name':'k'}`, `{"key_name":'k'}`, `{1:"k"}`, `{null:"k"}`, `{["x"]:"k"}`, `{"a":"b"}/**/`, `/**/{}`, `{}//x`, `{"key_name":"k"/*x*/}`, `#{}`,
		`{"key_name":nul}`, `{"key_name":nullx}`, `{"key_name":NULL}`, `{"key_name":undefined}`, `{"expires_in_days":1 2}`, `{"expires_in_days":--1}`, `{"expires_in_days":1e}`, `{"expires_in_days":.5}`, `{"expires_in_days":1.}`, `{"expires_in_days":Infinity}`, `{"expires_in_days":0e1}`, `{"expires_in_days":1_000}`, "{\"expires_in_days\":\uff11}",
		`{"key_name":"\x41"}`, `{"key_name":"\a"}`, `{"key_name":"\u12"}`, `{"key_name":"\u12G4"}`, `{"key_name":"\U0041"}`, `{"key_name":"\ud83d\u"}`, `{"key_name":"\ud83d\udd1"}`, `{"key_name":"\"}`, `{"key_name":"\\"`, `{"key_name":"\`, `{"key_name":"\u`,
		"{\"key_name\":\"a\nb\"}", "{\"key_name\":\"a\tb\"}", "{\"key_name\":\"a\x00b\"}", "{\"key_name\":\"a\x1fb\"}", "{\"key_\nname\":\"k\"}", "{\"\xff\":1}", "{\"\\ud800\":1}",
		"{\v}", "{\f}", "{\u00a0}", "{\u2028}", "\u00a0{}", "{\"key_name\"\u00a0:\"k\"}", `<key_name>k</key_name>`, `key_name=k&env=live`, "\xff\xfe{\x00}\x00", "\x1f\x8b\x08\x00", `{"key_name":"k"}` + "\x1e", `a{"key_name":"k"}`, `({"key_name":"k"})`, `)]}'{"key_name":"k"}`,
	}
	for _, n := range []int{100, 2500} {
		list = append(list, strings.Repeat("[", n), strings.Repeat(`{"key_name":`, n/2), strings.Repeat(`{"`, n), strings.Repeat("{", n), strings.Repeat(`"`, n), strings.Repeat(",", n), strings.Repeat(`\`, n))
	}
	return list
}
