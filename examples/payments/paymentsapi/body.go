package paymentsapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxBody        = 16 << 10
	maxDescription = 255 // code points
)

var (
	amountForm   = regexp.MustCompile(`^[1-9][0-9]{0,7}$`)
	currencyForm = regexp.MustCompile(`^[a-z]{3}$`)
	memberForm   = regexp.MustCompile(`^[a-z_]{1,40}$`)
)

// currencies are the ISO 4217 codes of money in circulation.
const currencies = " aed afn all amd aoa ars aud awg azn bam bbd bdt bhd bif bmd bnd bob brl bsd btn bwp byn bzd" +
	" cad cdf chf clp cny cop crc cup cve czk djf dkk dop dzd egp ern etb eur fjd fkp gbp gel ghs gip gmd gnf gtq gyd" +
	" hkd hnl htg huf idr ils inr iqd irr isk jmd jod jpy kes kgs khr kmf kpw krw kwd kyd kzt lak lbp lkr lrd lsl lyd" +
	" mad mdl mga mkd mmk mnt mop mru mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg" +
	" qar ron rsd rub rwf sar sbd scr sdg sek sgd shp sle sos srd ssp stn svc syp szl thb tjs tmt tnd top try ttd twd tzs" +
	" uah ugx usd uyu uzs ves vnd vuv wst xaf xcd xcg xof xpf yer zar zmw zwg "

// readPayment returns the amount, currency and description that the body asks for.
func readPayment(r *http.Request) (Payment, error) {
	var p Payment
	text, err := readBody(r)
	if err != nil {
		return p, err
	}
	members, err := readObject(text, "amount", "currency", "description")
	if err != nil {
		return p, err
	}
	amount := string(members["amount"])
	if !amountForm.MatchString(amount) {
		return p, invalid("amount", "amount must be a whole number from 1 to 99999999, in the currency's minor unit.")
	}
	if p.Amount, err = strconv.ParseInt(amount, 10, 64); err != nil {
		return p, err
	}
	if json.Unmarshal(members["currency"], &p.Currency) != nil || !currencyForm.MatchString(p.Currency) ||
		!strings.Contains(currencies, " "+p.Currency+" ") {
		return p, invalid("currency", "currency must be an ISO 4217 code in lower case, such as eur.")
	}
	if raw, given := members["description"]; given && string(raw) != "null" {
		var d string
		if json.Unmarshal(raw, &d) != nil || !printable(d) {
			return p, invalid("description", "description must be 1 to 255 printable characters.")
		}
		p.Description = &d
	}
	return p, nil
}

// readNothing accepts an empty body and an empty object.
func readNothing(r *http.Request) error {
	if r.ContentLength == 0 {
		return nil
	}
	text, err := readBody(r)
	if err != nil || len(text) == 0 {
		return err
	}
	_, err = readObject(text)
	return err
}

func readBody(r *http.Request) ([]byte, error) {
	text, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &problem{Status: http.StatusRequestEntityTooLarge, Code: "body_too_large", Detail: "The body may have 16 KiB."}
	}
	if err != nil {
		return nil, invalid("", "The body could not be read to its end.")
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if len(text) > 0 && (err != nil || kind != "application/json") {
		return nil, &problem{Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type", Detail: "Send Content-Type: application/json."}
	}
	return text, nil
}

// readObject splits one JSON object into its members, each at most once and known by exactly
// this name. encoding/json alone would take AMOUNT for amount and the last of two.
func readObject(text []byte, known ...string) (map[string]json.RawMessage, error) {
	// Valid also limits the nesting, to 10 000.
	if !utf8.Valid(text) || !json.Valid(text) || bytes.TrimLeft(text, " \t\r\n")[0] != '{' {
		return nil, invalid("", "The body must be one JSON object in UTF-8.")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		_, twice := members[name]
		switch {
		case !slices.Contains(known, name) && memberForm.MatchString(name): // so it cannot be a secret
			return nil, invalid(name, "The body has a member that is not known here.")
		case !slices.Contains(known, name):
			return nil, invalid("", "The body has a member that is not known here.")
		case twice:
			return nil, invalid(name, "The body has this member twice.")
		}
		members[name] = value
	}
	return members, nil
}

// printable refuses control characters, line separators and the replacement character, which is
// what a lone surrogate becomes.
func printable(s string) bool {
	n := utf8.RuneCountInString(s)
	return n > 0 && n <= maxDescription && strings.TrimSpace(s) != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError
	})
}
