package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is the union of the members that the three files used here have.
type vectors struct {
	TestGroups []struct {
		KeySize, IVSize, TagSize int // bits
		Tests                    []struct {
			TcID    int
			Comment string
			Result  string

			Key, IV, AAD, Msg, CT, Tag hexBytes

			IKM, Salt, Info, OKM hexBytes
			Size                 int
		}
	}
}

func readVectors(t *testing.T, name string) vectors {
	t.Helper()
	file, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWycheproofHKDF(t *testing.T) {
	ran := 0
	for _, group := range readVectors(t, "hkdf_sha256_test.json").TestGroups {
		for _, tt := range group.Tests {
			ran++
			if tt.Result != "valid" { // an output longer than HKDF can give
				if _, err := hkdf.Key(sha256.New, tt.IKM, tt.Salt, string(tt.Info), tt.Size); err == nil {
					t.Errorf("%d (%s): gave %d bytes", tt.TcID, tt.Comment, tt.Size)
				}
				continue
			}
			// Output of one length starts with the output of every shorter one (RFC 5869, 2.3).
			got := derive(tt.IKM, tt.Salt, string(tt.Info))
			n := min(tt.Size, len(got))
			if !bytes.Equal(got[:n], tt.OKM[:n]) {
				t.Errorf("%d (%s): got %x, want %x", tt.TcID, tt.Comment, got[:n], tt.OKM[:n])
			}
		}
	}
	if ran < 86 {
		t.Errorf("only %d vectors ran", ran)
	}
}

func TestWycheproofHMAC(t *testing.T) {
	ran := 0
	for _, group := range readVectors(t, "hmac_sha256_test.json").TestGroups {
		for _, tt := range group.Tests {
			ran++
			m := newMAC(tt.Key)
			for range 3 { // a state fresh from its maker and a used one
				sum := m.begin().finish(tt.Msg)
				if got := hmac.Equal(sum[:group.TagSize/8], tt.Tag); got != (tt.Result == "valid") {
					t.Errorf("%d (%s): tag accepted: %v, want %s", tt.TcID, tt.Comment, got, tt.Result)
				}
			}
			if group.TagSize == 256 {
				sum := m.begin().finish(tt.Msg)
				if got := compare(sum, Seal{MAC: tt.Tag}) == nil; got != (tt.Result == "valid") {
					t.Errorf("%d (%s): seal accepted: %v, want %s", tt.TcID, tt.Comment, got, tt.Result)
				}
			}
		}
	}
	if ran < 174 {
		t.Errorf("only %d vectors ran", ran)
	}
}

// A box is nonce ‖ ciphertext ‖ tag with sizes of 96 and 128 bits under a 256-bit key; the
// vectors of other sizes cannot be put as one.
func TestWycheproofAESGCM(t *testing.T) {
	valid, invalid := 0, 0
	for _, group := range readVectors(t, "aes_gcm_test.json").TestGroups {
		if group.KeySize != 256 || group.IVSize != 96 || group.TagSize != 128 {
			continue
		}
		for _, tt := range group.Tests {
			box := bytes.Join([][]byte{tt.IV, tt.CT, tt.Tag}, nil)
			plain, err := decrypt([keySize]byte(tt.Key), box, tt.AAD)
			if tt.Result == "valid" {
				valid++
				if err != nil || !bytes.Equal(plain, tt.Msg) {
					t.Errorf("%d (%s): got %x, %v; want %x", tt.TcID, tt.Comment, plain, err, tt.Msg)
				}
				// What encrypt makes has the same form.
				if again, err := decrypt([keySize]byte(tt.Key), encrypt([keySize]byte(tt.Key), tt.Msg, tt.AAD), tt.AAD); err != nil || !bytes.Equal(again, tt.Msg) {
					t.Errorf("%d (%s): its own box gives %x, %v", tt.TcID, tt.Comment, again, err)
				}
			} else {
				invalid++
				if err == nil {
					t.Errorf("%d (%s): opened", tt.TcID, tt.Comment)
				}
			}
		}
	}
	if valid < 30 || invalid < 20 {
		t.Errorf("only %d valid and %d invalid vectors ran", valid, invalid)
	}
	t.Logf("%d valid, %d invalid", valid, invalid)
}
