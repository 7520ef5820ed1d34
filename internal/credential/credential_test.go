package credential

import (
	"encoding/base64"
	"strings"
	"testing"
)

// V2: the forms are tested through each door; here is what no door's tests send.
func TestV2Secret(t *testing.T) {
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, tc := range []struct {
		name          string
		authorization []string
		apiKeys       []string
		want          string
	}{
		{"bearer", []string{"bearer  s "}, nil, "s"},
		{"basic", []string{basic("s:")}, nil, "s"},
		{"api key", nil, []string{"s", "s"}, "s"},
		{"all agree", []string{basic("s:")}, []string{"s"}, "s"},
		{"none", nil, nil, ""},
		{"two schemes in one", []string{"Bearer s, Basic x"}, nil, ""},
		{"bearer with a tab", []string{"Bearer s\tx"}, nil, ""},
		{"basic with two colons", []string{basic("s:p:")}, nil, ""},
		{"basic with a password", []string{basic("s:p")}, nil, ""},
		{"basic with stray bits", []string{"Basic czp="}, nil, ""},
		{"basic without padding", []string{"Basic czo"}, nil, ""},
		{"twice", []string{"Bearer s", "Bearer s"}, nil, ""},
		{"differ", []string{"Bearer s"}, []string{"t"}, ""},
		{"empty beside a good one", []string{"Bearer s"}, []string{"s", ""}, ""},
		{"another scheme beside a good one", []string{"Negotiate s"}, []string{"s"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := Secret(tc.authorization, tc.apiKeys)
			if got != tc.want || ok != (tc.want != "") {
				t.Errorf("got %q, %v, want %q", got, ok, tc.want)
			}
		})
	}
}

// V3
func TestV3Account(t *testing.T) {
	for _, tc := range []struct {
		values []string
		want   string
	}{{nil, ""}, {[]string{"a"}, "a"}, {[]string{""}, NotAnAccount}, {[]string{"a", "a"}, NotAnAccount}} {
		if got := Account(tc.values); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.values, got, tc.want)
		}
	}
}

// V2
func TestV2IsIdentity(t *testing.T) {
	for name, want := range map[string]bool{
		"X-Keyward-Organization-Id": true, "x_keyward_key_id": true, "X-KEYWARD_": true, "X-Keyward": false, "X-Keywards-A": false, "": false,
		"X.Keyward.Key.Id": true, "x!keyward~": true, "X Keyward\xff": true, "X0Keyward-": false, "X-Keyward0": false, "X-Key-ward-": false, "Y-Keyward-": false, "-X-Keyward-": false,
	} {
		if got := IsIdentity(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// V2
func TestV2InURL(t *testing.T) {
	secret := "xy_live_" + strings.Repeat("a1", 19)
	for _, tc := range []struct {
		path, query string
		want        bool
	}{
		{"/v1/payments", "limit=3&note=%zz", false},
		{"/" + secret, "", true},
		{"/", "a=" + secret, true},
		{"/", "bad=%zz;k=" + strings.ReplaceAll(secret, "_", "%5f"), true},
		{"/", secret[:20], false},
	} {
		if got := InURL(tc.path, tc.query); got != tc.want {
			t.Errorf("%s?%s: %v", tc.path, tc.query, got)
		}
	}
}
