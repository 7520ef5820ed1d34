package identity

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/syncgram/keyward/internal/keys"
)

// anyMember stands in a path for the only member of an object or the only element of an array.
const anyMember = "*"

// pathResult says what a path led to.
type pathResult int

const (
	pathFound      pathResult = iota
	pathMissing               // no such claim, or it is null
	pathAmbiguous             // * stands before several members
	pathUnreadable            // an object on the way has a member twice
)

// lookup finds the claim that a path names. A claim that has the whole path for its name comes
// first. Else the path is names with dots between them, and at each object the longest name counts
// that the object has: "https://example.com/app.org" is the member org of the claim
// https://example.com/app. There is no second attempt with a shorter name, so one token has one
// meaning. After the first name, * is the only member of an object or the only element of an array.
func lookup(claims map[string]json.RawMessage, path string) (json.RawMessage, pathResult) {
	members, rest := claims, path
	for {
		raw, after, found := longestName(members, rest)
		if !found {
			return nil, pathMissing
		}
		for {
			if after == "" {
				if string(raw) == "null" {
					return nil, pathMissing
				}
				return raw, pathFound
			}
			rest = after[1:] // without the dot
			if len(raw) > 0 && raw[0] == '{' {
				var ok bool
				if members, ok = object(raw); !ok {
					return nil, pathUnreadable
				}
				if _, _, found := longestName(members, rest); found {
					break
				}
			}
			next, isAny := strings.CutPrefix(rest, anyMember)
			if !isAny || (next != "" && next[0] != '.') {
				return nil, pathMissing
			}
			only, result := onlyMember(raw)
			if result != pathFound {
				return nil, result
			}
			raw, after = only, next
		}
	}
}

// longestName returns the member with the longest name that path begins with, up to its end or to
// a dot, and what is left of the path from that dot on.
func longestName(
	members map[string]json.RawMessage, path string,
) (raw json.RawMessage, after string, found bool) {
	for end := len(path); end >= 0; end = strings.LastIndexByte(path[:end], '.') {
		if raw, found := members[path[:end]]; found {
			return raw, path[end:], true
		}
	}
	return nil, "", false
}

// onlyMember returns what an object or an array holds, if that is one thing.
func onlyMember(raw json.RawMessage) (json.RawMessage, pathResult) {
	var values []json.RawMessage
	switch {
	case len(raw) > 0 && raw[0] == '{':
		members, ok := object(raw)
		if !ok {
			return nil, pathUnreadable
		}
		values = slices.Collect(maps.Values(members))
	case len(raw) > 0 && raw[0] == '[':
		if json.Unmarshal(raw, &values) != nil {
			return nil, pathUnreadable
		}
	}
	switch len(values) {
	case 0:
		return nil, pathMissing
	case 1:
		return values[0], pathFound
	default:
		return nil, pathAmbiguous
	}
}

// organization reads the organization: a string, or an array of exactly one string.
func (a *Authenticator) organization(claims map[string]json.RawMessage) (string, error) {
	reject := func(why string) (string, error) {
		return "", refuse("organization claim " + strconv.Quote(a.organizationClaim) + " " + why)
	}
	raw, result := lookup(claims, a.organizationClaim)
	if result == pathFound && raw[0] == '[' {
		raw, result = onlyMember(raw)
	}
	switch result {
	case pathMissing:
		return reject("is missing")
	case pathAmbiguous:
		return reject("names several organizations: the issuer must say which one the user acts for")
	case pathUnreadable:
		return reject("cannot be read: a member stands in it twice")
	}
	id, ok := text(raw)
	switch {
	case !ok:
		return reject("is no string and no array of one string")
	case !keys.ValidOrganizationID(id):
		return reject("is not an organization id")
	}
	return id, nil
}

// roles reads the roles that the user has in an organization. A token without the claim has none.
func (a *Authenticator) roles(
	claims map[string]json.RawMessage, organization string,
) ([]string, error) {
	reject := func(why string) ([]string, error) {
		return nil, refuse("role claim " + strconv.Quote(a.roleClaim) + " " + why)
	}
	raw, result := lookup(claims, a.roleClaim)
	switch result {
	case pathMissing:
		return nil, nil
	case pathAmbiguous:
		return reject("has several members at *")
	case pathUnreadable:
		return reject("cannot be read: a member stands in it twice")
	}
	list, result := roleList(raw, organization)
	switch result {
	case pathFound:
		return list, nil
	case pathUnreadable:
		return reject("cannot be read: a member stands in it twice")
	default:
		return reject("is neither a string, nor an array of strings, nor an object of " +
			"roles by organization")
	}
}

// roleList reads one string with spaces between the roles (as RFC 8693 §4.2 writes scope), an
// array of strings, each one role, or Zitadel's object: by role, the organizations that granted it.
// There, a role counts if the user's organization is among them: the role that another organization
// gave must not work in this one. pathMissing means that raw is none of these.
func roleList(raw json.RawMessage, organization string) ([]string, pathResult) {
	var list []string
	switch {
	case raw[0] == '{':
		byRole, ok := object(raw)
		if !ok {
			return nil, pathUnreadable
		}
		for role, granted := range byRole {
			if granted[0] != '{' {
				return nil, pathMissing
			}
			organizations, ok := object(granted)
			if !ok {
				return nil, pathUnreadable
			}
			if _, found := organizations[organization]; found {
				list = append(list, role)
			}
		}
		slices.Sort(list)
	default:
		if s, ok := text(raw); ok {
			list = strings.Split(s, " ")
		} else if list, ok = texts(raw); !ok {
			return nil, pathMissing
		}
	}
	return slices.DeleteFunc(list, func(s string) bool { return s == "" }), pathFound
}
