package keys_test

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/syncgram/keyward/internal/keys"
)

// P5: the bytes that a row's MAC covers are what they were before there was a description, so
// every row that is there stays authentic.
func TestP5BytesOfEarlierRows(t *testing.T) {
	at := time.UnixMicro(1_700_000_000_000_000).UTC()
	k := keys.Key{ID: "key_a", OrganizationID: "org", Environment: keys.Test, Hint: "abcd", Name: "n", CreatedAt: at,
		CreatedBy: "u", ExpiresInDays: 3, ExpiresAt: at, State: keys.StateActive, Replaces: "key_b", Revision: 7}
	const before = "000000056b65795f61000000036f72670000000474657374000000200000000000000000000000000000000000000000" +
		"0000000000000000000000000000000461626364000000016e00060a24181e400000000001750000000000000003" +
		"00060a24181e4000000000066163746976650000000000000000000000000000000" + "56b65795f620000000000000007"
	if got := hex.EncodeToString(k.Sealed()); got != before {
		t.Errorf("a key without a description:\n%s\nwant\n%s", got, before)
	}
	o := keys.Organization{ID: "org", Name: "n", CurrentEnvironment: keys.Test, Active: true, CreatedAt: at, UpdatedAt: at, Revision: 7}
	const organization = "000000036f7267000000016e00000000000000047465737400" + "0100060a24181e400000060a24181e40000000000000000007"
	if got := hex.EncodeToString(o.Sealed()); got != organization {
		t.Errorf("an organization that is not deleted:\n%s\nwant\n%s", got, organization)
	}
}

// P5: no two rows that differ have the same bytes. The texts are drawn from few pieces, the bytes of
// lengths, tags and whole rows among them, so that fields are mistaken for each other if they can be.
func TestP5NoTwoRowsHaveTheSameBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawKey(t, "a"), drawKey(t, "b")
		if rapid.Bool().Draw(t, "tail") { // one row's bytes at the end of another's fields
			b = a
			b.Replaces, b.Description = a.Replaces+string(a.Sealed()[:rapid.IntRange(0, 9).Draw(t, "cut")]), drawText(t, "description")
		}
		if (a == b) != bytes.Equal(a.Sealed(), b.Sealed()) {
			t.Fatalf("%+v and %+v", a, b)
		}
		o, p := drawOrganization(t, "o"), drawOrganization(t, "p")
		if (o == p) != bytes.Equal(o.Sealed(), p.Sealed()) {
			t.Fatalf("%+v and %+v", o, p)
		}
	})
}

// P5: as above, for whatever a fuzzer finds.
func FuzzP5KeyBytes(f *testing.F) {
	f.Add("", "", int64(1), "r", "", int64(1))
	f.Add("r", "\x01\x00\x00\x00\x01d", int64(1), "r", "d", int64(1))
	f.Add("r", "d", int64(0x0100000001), "r\x00", "", int64(0x64))
	f.Fuzz(func(t *testing.T, replaces, description string, revision int64, replaces2, description2 string, revision2 int64) {
		a := keys.Key{Replaces: replaces, Description: description, Revision: revision}
		b := keys.Key{Replaces: replaces2, Description: description2, Revision: revision2}
		if (a == b) != bytes.Equal(a.Sealed(), b.Sealed()) {
			t.Fatalf("%+v and %+v", a, b)
		}
	})
}

func drawText(t *rapid.T, label string) string {
	pieces := rapid.SampledFrom([]string{"", "a", "\x00", "\x00\x00\x00\x01", "\x01", "\x01\x00\x00\x00\x01a", "\x00\x00\x00\x00\x00\x00\x00\x07"})
	text := ""
	for _, p := range rapid.SliceOfN(pieces, 0, 3).Draw(t, label) {
		text += p
	}
	return text
}

func drawNumber(t *rapid.T, label string) int64 {
	return rapid.SampledFrom([]int64{0, 1, 7, 0x0100000001, 0x6100000000000000, -1}).Draw(t, label)
}

func drawKey(t *rapid.T, label string) keys.Key {
	return keys.Key{
		ID: drawText(t, label), Name: drawText(t, label), CreatedBy: drawText(t, label), RevokeReason: drawText(t, label),
		Replaces: drawText(t, label), Description: drawText(t, label), Revision: drawNumber(t, label),
		State: keys.State(drawText(t, label)), CreatedAt: keys.FromMicros(drawNumber(t, label)),
	}
}

func drawOrganization(t *rapid.T, label string) keys.Organization {
	return keys.Organization{
		ID: drawText(t, label), Name: drawText(t, label), ParentID: drawText(t, label), Active: rapid.Bool().Draw(t, label),
		PaymentsEnabled: rapid.Bool().Draw(t, label), Deleted: rapid.Bool().Draw(t, label), Revision: drawNumber(t, label),
		UpdatedAt: keys.FromMicros(drawNumber(t, label)),
	}
}
