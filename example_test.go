package keyward_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/syncgram/keyward"
	"github.com/syncgram/keyward/api"
)

// startKeyward stands in for a Keyward server that knows one key, by the name "good".
func startKeyward() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var question api.VerifyKey
		if err := json.NewDecoder(r.Body).Decode(&question); err != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		verdict := api.Verdict{Reason: "unknown"}
		if question.Key == "good" {
			verdict = api.Verdict{Valid: true, Reason: "valid", APIKeyID: "key_1", OrganizationID: "org_demo", Env: "live"}
		}
		_ = json.NewEncoder(w).Encode(verdict)
	}))
}

func ExampleClient_Verify() {
	server := startKeyward()
	defer server.Close()
	client, err := keyward.New(keyward.Config{Addresses: []string{server.URL}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for _, secret := range []string{"good", "bad"} {
		verdict, err := client.Verify(context.Background(), keyward.VerifyRequest{Secret: secret})
		if err != nil {
			log.Fatal(err) // it could not be decided: refuse
		}
		fmt.Println(verdict.Valid, verdict.Reason, verdict.OrganizationID)
	}
	// Output:
	// true valid org_demo
	// false unknown
}

func ExampleMiddleware() {
	server := startKeyward()
	defer server.Close()
	client, err := keyward.New(keyward.Config{Addresses: []string{server.URL}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		identity, ok := keyward.FromContext(r.Context())
		if !ok {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "hello %s in %s", identity.OrganizationID, identity.Env)
	})
	shop := httptest.NewServer(keyward.Middleware(client)(hello))
	defer shop.Close()

	for _, secret := range []string{"good", "bad"} {
		req, err := http.NewRequest(http.MethodGet, shop.URL, nil)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := shop.Client().Do(req)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			fmt.Println(resp.Status)
			continue
		}
		fmt.Println(string(body))
	}
	// Output:
	// hello org_demo in live
	// 401 Unauthorized
}

func ExampleFromContext() {
	// A handler is tested without the middleware by putting an identity in the context.
	handler := func(w http.ResponseWriter, r *http.Request) {
		identity, ok := keyward.FromContext(r.Context())
		if !ok || identity.Env != keyward.Live {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, "live")
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	w := httptest.NewRecorder()
	handler(w, r.WithContext(keyward.NewContext(r.Context(), keyward.Identity{OrganizationID: "org_demo", Env: keyward.Live})))
	fmt.Println(w.Body)
	// Output: live
}
