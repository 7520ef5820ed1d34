package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/syncgram/keyward/internal/keys"
)

// What the tokens of a DevIssuer say in iss and aud.
const (
	DevIssuerName = "keyward-dev"
	DevAudience   = "keyward"
)

// DevKeyFile is the private key's name in the folder of a DevIssuer.
const DevKeyFile = "issuer.key"

const devKeySetFile = "issuer.jwks.json"

// devRoleClaim holds the roles in a DevIssuer's tokens.
const devRoleClaim = "roles"

// DevIssuer signs tokens on a developer's machine, where no identity provider runs (R1, R4). Its ES256
// key lives in a file of a folder, beside the key set that verifies it.
type DevIssuer struct {
	keySetPath string
	signer     jose.Signer
}

// OpenDevIssuer loads the issuer of a folder, which is made (0700, its files 0600) when it
// is not there. Two processes that open a new folder at once get the same issuer. A private key
// that others may read is refused.
func OpenDevIssuer(folder string) (*DevIssuer, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("development issuer: %w", bare(err))
	}
	path := filepath.Join(folder, DevKeyFile)
	key, err := loadDevKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = createDevKey(path); err == nil {
			key, err = loadDevKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("development issuer: %s: %w", DevKeyFile, bare(err))
	}

	public := jose.JSONWebKey{Key: &key.PublicKey, Algorithm: string(jose.ES256), Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	set, err := json.MarshalIndent(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	d := &DevIssuer{keySetPath: filepath.Join(folder, devKeySetFile)}
	if err := writePrivate(d.keySetPath, set, os.Rename); err != nil {
		return nil, fmt.Errorf("development issuer: %s: %w", devKeySetFile, bare(err))
	}

	d.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		return nil, fmt.Errorf("development issuer: %w", err)
	}
	return d, nil
}

// Config returns what an Authenticator needs to accept this issuer's tokens and no others.
func (d *DevIssuer) Config() Config {
	return Config{JWKS: d.keySetPath, Issuer: DevIssuerName, Audience: DevAudience}
}

// Issue returns a token for a user of an organization that is good for ttl, at least one second,
// with the roles in the claim "roles". What an Authenticator would refuse is not issued.
func (d *DevIssuer) Issue(user, organization string, ttl time.Duration, roles ...string) (string, error) {
	switch {
	case !validUser(user):
		return "", errors.New("user: must be 1 to 255 printable characters")
	case !keys.ValidOrganizationID(organization):
		return "", errors.New("organization: must be 1 to 128 letters, digits and _.:- with a letter or digit first")
	case ttl < time.Second:
		return "", errors.New("ttl: must be at least one second")
	}
	now := time.Now()
	content := map[string]any{
		"iss":    DevIssuerName,
		"aud":    DevAudience,
		"sub":    user,
		"org_id": organization,
		"iat":    now.Unix(),
		"exp":    now.Add(ttl).Unix(),
		"jti":    rand.Text(),
	}
	if len(roles) > 0 {
		content[devRoleClaim] = roles
	}
	claims, err := json.Marshal(content)
	if err != nil {
		return "", fmt.Errorf("development issuer: %w", err)
	}
	signed, err := d.signer.Sign(claims)
	if err != nil {
		return "", fmt.Errorf("development issuer: %w", err)
	}
	return signed.CompactSerialize()
}

func loadDevKey(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, errors.New("others may read it: chmod 600 it, or remove it for a new one")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("not a PEM file: remove it for a new one")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 private key in PKCS #8: remove it for a new one")
	}
	return key, nil
}

// createDevKey writes a new key, unless another process was faster: then its key stays.
func createDevKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	err = writePrivate(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), os.Link)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// writePrivate writes a file that only its owner can read and that is never seen half
// written. put gives it its name: os.Rename replaces what was there, os.Link does not.
func writePrivate(path string, data []byte, put func(from, to string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made 0600
	if err != nil {
		return err
	}
	defer func() {
		// Gone already when it was renamed.
		if gone := os.Remove(f.Name()); err == nil && !errors.Is(gone, fs.ErrNotExist) {
			err = gone
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return put(f.Name(), path)
}
