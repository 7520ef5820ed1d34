package api

import (
	"bytes"
	"net/http"
	"regexp"
)

// hostPattern is a host as a request names it, and nothing that would end a JSON or YAML string.
var hostPattern = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)

// serverAddress is the address that a request was sent to, empty when its host is no such thing. A
// proxy that ends TLS says so in X-Forwarded-Proto, which can make no more of an answer than https.
func serverAddress(r *http.Request) string {
	if !hostPattern.MatchString(r.Host) {
		return ""
	}
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// The document's own server is its own address, written as a relative one.
var relativeServers = [...][2][]byte{
	{[]byte("\n \"servers\": [\n  {\n   \"url\": \"/\""), []byte("\n \"servers\": [\n  {\n   \"url\": \"%\"")},
	{[]byte("\nservers:\n  - url: /\n"), []byte("\nservers:\n  - url: \"%\"\n")},
}

// withServer returns the document, as JSON or YAML, with the address it was fetched from as its
// server (C28). As it is written it says the same by a relative address, which not every tool resolves.
func withServer(document []byte, address string) []byte {
	for _, form := range relativeServers {
		absolute := bytes.Replace(form[1], []byte("%"), []byte(address), 1)
		if bytes.Contains(document, form[0]) {
			return bytes.Replace(document, form[0], absolute, 1)
		}
	}
	return document
}
