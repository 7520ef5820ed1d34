package identity

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Collectors returns the metrics of the key set. With a shared secret there are none.
func (a *Authenticator) Collectors() []prometheus.Collector {
	if a.cache == nil {
		return nil
	}
	return []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyward_jwks_age_seconds",
		Help: "Time since the issuer's key set was last read, or since the start if it never was.",
	}, func() float64 { return a.KeySetAge().Seconds() })}
}

// KeySetAge is how long ago the issuer's key set was last read, or a was made if it never was. It
// is 0 with a shared secret.
func (a *Authenticator) KeySetAge() time.Duration {
	if a.cache == nil {
		return 0
	}
	return a.cache.age()
}
