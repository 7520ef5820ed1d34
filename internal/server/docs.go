package server

import "github.com/syncgram/keyward/api"

// docs serves the OpenAPI document and the page that is made of it. Their headers are their own: the page
// has a style and a script, and all of them may be kept by clients.
func docs() endpoint {
	h := api.DocsHandler()
	return func(x *exchange) error {
		x.Header().Del("Cache-Control")
		h.ServeHTTP(x, x.r)
		return nil
	}
}
