package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/syncgram/keyward/api"
)

// C28: both forms of the document are the same document.
func TestC28JSONFollowsYAML(t *testing.T) {
	want, err := convert(api.YAML())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(api.JSON())); diff != "" {
		t.Errorf("api/openapi.json is out of date, run `go generate ./api` (-want +got):\n%s", diff)
	}
}

func TestConvert(t *testing.T) {
	tests := []struct {
		name, yaml, want string
	}{
		{"order is kept", "b: 1\na: [x, null, true, 1.5]\n", "{\n \"b\": 1,\n \"a\": [\n  \"x\",\n  null,\n  true,\n  1.5\n ]\n}\n"},
		{"numeric names are strings", "200: {}\n", "{\n \"200\": {}\n}\n"},
		{"no HTML escapes", "a: <b> & c\n", "{\n \"a\": \"<b> & c\"\n}\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := convert([]byte(tt.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestConvertRefuses(t *testing.T) {
	for name, source := range map[string]string{
		"an empty file":             "",
		"an alias":                  "a: &x 1\nb: *x\n",
		"an anchor alone":           "a: &x {b: 1}\n",
		"a timestamp":               "a: 2024-01-15T10:00:00Z\n",
		"a member twice":            "a: 1\na: 2\n",
		"a number JSON cannot hold": "a: .inf\n",
		"a merge key":               "a: {<<: {b: 1}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := convert([]byte(source)); err == nil {
				t.Errorf("converted to %s", got)
			}
		})
	}
}
