package doors

import (
	"bytes"
	"context"
	"flag"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/syncgram/keyward/internal/keywardtest"
)

const examples = "../../examples/"

// proxy is a running nginx, Caddy or Traefik, with the configuration of examples as it stands but for the addresses.
type proxy struct {
	name   string
	url    string
	dir    string // its own, with everything it writes
	output *keywardtest.Output
}

// written returns what the proxy has written, by file.
func (x *proxy) written(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{x.name + " output": x.output.String()}
	files, err := filepath.Glob(filepath.Join(x.dir, "*.log"))
	if err != nil || len(files) == 0 {
		t.Errorf("%s has written no log: %v", x.name, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Error(err)
		}
		found[x.name+" "+filepath.Base(f)] = string(text)
	}
	return found
}

// start runs a proxy until the test ends, and waits until it listens.
func (x *proxy) start(t *testing.T, address string, cmd *exec.Cmd) {
	t.Helper()
	x.url, x.output = "http://"+address, keywardtest.NewOutput()
	cmd.Dir = x.dir
	cmd.Stdout, cmd.Stderr = x.output, x.output
	// Not SIGKILL: nginx has processes of its own to end.
	cmd.SysProcAttr = keywardtest.DieWithParent(syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", x.name, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends by the signal below, or too early, which shows
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
		<-exited
		if t.Failed() {
			for name, text := range x.written(t) {
				t.Logf("%s:\n%s", name, text[max(0, len(text)-4000):])
			}
		}
	})
	err := keywardtest.Poll(func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, exited)
	if err != nil {
		t.Fatalf("%s does not listen: %v\n%s", x.name, err, x.output)
	}
}

// configure writes a file of examples into the proxy's folder, with some of its text replaced, and returns its path.
func (x *proxy) configure(t *testing.T, example string, replaced map[string]string) (file string) {
	t.Helper()
	text := read(t, example)
	for from, to := range replaced {
		if strings.Count(text, from) != 1 {
			t.Fatalf("%s: %q is not there once", example, from)
		}
		text = strings.Replace(text, from, to, 1)
	}
	file = filepath.Join(x.dir, filepath.Base(example))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// freeAddress returns a loopback address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (p *platform) addresses() (nodes [3]string, api string) {
	for i, n := range p.nodes {
		nodes[i] = strings.TrimPrefix(n.Verification, "http://")
	}
	return nodes, strings.TrimPrefix(p.api.URL, "http://")
}

// startNginx starts Debian's nginx. Its configuration knows no variables for addresses, so these are put into the text. What else is
// replaced in it is the caller's.
func startNginx(p *platform, replaced map[string]string) *proxy {
	p.t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not in everybody's path
	}
	if _, err := os.Stat(program); err != nil {
		p.t.Fatal("no nginx found: apt-get install nginx-light")
	}
	x := &proxy{name: "nginx", dir: p.t.TempDir()}
	// Its workers keep large bodies in files here, and are another user when root runs the tests.
	for _, dir := range []string{x.dir, filepath.Dir(x.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	address := freeAddress(p.t)
	nodes, api := p.addresses()
	text := map[string]string{
		"listen 127.0.0.1:8000": "listen " + address, "server 127.0.0.1:8090": "server " + api,
		"server 127.0.0.1:8081": "server " + nodes[0], "server 127.0.0.1:9081": "server " + nodes[1], "server 127.0.0.1:10081": "server " + nodes[2],
	}
	maps.Copy(text, replaced)
	file := x.configure(p.t, "nginx/nginx.conf", text)
	token := filepath.Join(x.dir, "keyward-token.conf")
	if err := os.WriteFile(token, []byte(`proxy_set_header X-Internal-Token "`+p.token+`";`), 0o600); err != nil {
		p.t.Fatal(err)
	}
	x.start(p.t, address, exec.Command(program, "-p", x.dir, "-c", file, "-g", "daemon off;"))
	return x
}

// caddyProgram builds Caddy from its module, which takes minutes the first time and then is in Go's build cache.
var caddyProgram = sync.OnceValues(func() (string, error) {
	var failure bytes.Buffer
	cmd := exec.Command("go", "tool", "-modfile=tools/caddy/go.mod", "-n", "caddy")
	cmd.Dir, cmd.Stderr = "../..", &failure
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as test.sh builds it
	out, err := cmd.Output()
	if err != nil {
		_, _ = failure.WriteTo(os.Stderr) // why it was not built
	}
	return strings.TrimSpace(string(out)), err
})

// startCaddy starts Caddy with the configuration of examples, which takes addresses from the environment.
func startCaddy(p *platform, replaced map[string]string) *proxy {
	p.t.Helper()
	program, err := caddyProgram()
	if err != nil {
		p.t.Fatalf("Caddy cannot be built: %v", err)
	}
	x := &proxy{name: "Caddy", dir: p.t.TempDir()}
	address := freeAddress(p.t)
	nodes, api := p.addresses()
	// A copy, so that the go command knows the file for one that the test read.
	file := x.configure(p.t, "caddy/Caddyfile", replaced)
	cmd := exec.Command(program, "run", "--config", file, "--adapter", "caddyfile")
	_, port, _ := net.SplitHostPort(address)
	cmd.Env = append(os.Environ(), "DOOR_PORT="+port, "DOOR_LOG="+filepath.Join(x.dir, "caddy.log"),
		"KEYWARD_NODES="+strings.Join(nodes[:], " "), "PAYMENTS="+api, "KEYWARD_TOKEN="+p.token,
		"HOME="+x.dir, "XDG_CONFIG_HOME="+x.dir, "XDG_DATA_HOME="+x.dir)
	x.start(p.t, address, cmd)
	return x
}

// traefikProgram is Traefik itself, which is no Debian package and takes long to build.
var traefikProgram = flag.String("doors.traefik", "", "the traefik program, version 3.7.12 or newer, to run with examples/traefik; without it what it does is played")

// startTraefik starts Traefik with the configuration of examples.
func startTraefik(p *platform) *proxy {
	p.t.Helper()
	x := &proxy{name: "Traefik", dir: p.t.TempDir()}
	address, question := freeAddress(p.t), freeAddress(p.t)
	nodes, api := p.addresses()
	dynamic := strings.NewReplacer("127.0.0.1:8089", question, "127.0.0.1:8090", api,
		"127.0.0.1:8081", nodes[0], "127.0.0.1:9081", nodes[1], "127.0.0.1:10081", nodes[2]).Replace(read(p.t, "traefik/dynamic.yml"))
	if err := os.WriteFile(filepath.Join(x.dir, "dynamic.yml"), []byte(dynamic), 0o600); err != nil {
		p.t.Fatal(err)
	}
	file := x.configure(p.t, "traefik/traefik.yml", map[string]string{
		"127.0.0.1:8000": address, "127.0.0.1:8089": question, "accessLog:\n": "accessLog:\n  filePath: access.log\n",
	})
	cmd := exec.Command(*traefikProgram, "--configFile="+file)
	cmd.Env = append(os.Environ(), "KEYWARD_TOKEN="+p.token)
	x.start(p.t, address, cmd)
	// It listens before its routes are there.
	if err := keywardtest.Poll(func() bool {
		resp, _, err := p.do("GET", x.url+"/v1/payments", "", nil)
		return err == nil && resp.StatusCode == http.StatusUnauthorized
	}, nil); err != nil {
		p.t.Fatalf("Traefik does not refuse what has no key: %v\n%s", err, x.output)
	}
	return x
}

// traefik does what Traefik's ForwardAuth is documented to do, by what examples/traefik says. Its own rules for paths are not played.
type traefik struct {
	*httptest.Server
	next   atomic.Int64
	nodes  []string
	api    *httputil.ReverseProxy
	routes map[string]forwardAuth // by the first two segments of the path
	client *http.Client
	token  string // a credential of every node
}

// forwardAuth is what one router of dynamic.yml has its middlewares do.
type forwardAuth struct {
	question string // path and query
	replaced *regexp.Regexp
	before   []string // headers taken away before the question
	after    []string // and after it
}

// dynamicFile is the part of dynamic.yml that is played here.
type dynamicFile struct {
	HTTP struct {
		Middlewares map[string]struct {
			ForwardAuth *struct {
				Address                  string
				TrustForwardHeader       bool   `yaml:"trustForwardHeader"`
				AuthResponseHeadersRegex string `yaml:"authResponseHeadersRegex"`
			} `yaml:"forwardAuth"`
			Headers struct {
				CustomRequestHeaders map[string]string `yaml:"customRequestHeaders"`
			}
		}
		Routers map[string]struct{ Middlewares []string }
	}
}

func newTraefik(p *platform) *traefik {
	p.t.Helper()
	var file dynamicFile
	if err := yaml.Unmarshal([]byte(read(p.t, "traefik/dynamic.yml")), &file); err != nil {
		p.t.Fatal(err)
	}
	api, err := url.Parse(p.api.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	const fromEnvironment = `{{ env "KEYWARD_TOKEN" }}`
	if file.HTTP.Middlewares["internal-token"].Headers.CustomRequestHeaders["X-Internal-Token"] != fromEnvironment {
		p.t.Fatal("dynamic.yml: the internal token does not come from the environment")
	}
	x := &traefik{token: p.token, routes: map[string]forwardAuth{}, client: &http.Client{Transport: &http.Transport{}}, api: httputil.NewSingleHostReverseProxy(api)}
	for _, n := range p.nodes {
		x.nodes = append(x.nodes, n.Verification)
	}
	for _, name := range []string{"payments", "payouts"} {
		var a forwardAuth
		for _, m := range file.HTTP.Routers[name].Middlewares {
			middleware := file.HTTP.Middlewares[m]
			for header, value := range middleware.Headers.CustomRequestHeaders {
				switch {
				case value != "":
					p.t.Fatalf("dynamic.yml: %s sets %s, which is not played here", m, header)
				case a.replaced == nil:
					a.before = append(a.before, header)
				default:
					a.after = append(a.after, header)
				}
			}
			if f := middleware.ForwardAuth; f != nil {
				u, err := url.Parse(f.Address)
				if err != nil || f.TrustForwardHeader {
					p.t.Fatalf("dynamic.yml: %s trusts the client, or has no address: %v", m, err)
				}
				a.question, a.replaced = u.RequestURI(), regexp.MustCompile(f.AuthResponseHeadersRegex)
			}
		}
		if a.replaced == nil {
			p.t.Fatalf("dynamic.yml: the router %s asks nobody", name)
		}
		x.routes["/v1/"+name] = a
	}
	x.Server = httptest.NewServer(x)
	p.t.Cleanup(func() {
		x.Close()
		x.client.CloseIdleConnections()
	})
	return x
}

func (x *traefik) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, ok := x.routes[r.URL.Path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	for name := range r.Header { // of an entry point that trusts nobody
		if strings.HasPrefix(name, "X-Forwarded-") {
			r.Header.Del(name)
		}
	}
	for _, name := range route.before {
		r.Header.Del(name)
	}
	answer, body := x.ask(r, route.question)
	if answer == nil { // the load balancer in front of the nodes has none left
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if answer.StatusCode/100 != 2 {
		for name, values := range answer.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.StatusCode)
		_, _ = w.Write(body) // the client is gone; there is nobody left to tell
		return
	}
	for name := range r.Header {
		if route.replaced.MatchString(name) {
			r.Header.Del(name)
		}
	}
	for name, values := range answer.Header {
		if route.replaced.MatchString(name) {
			r.Header[name] = values
		}
	}
	for _, name := range route.after {
		r.Header.Del(name)
	}
	x.api.ServeHTTP(w, r)
}

// ask sends the question to one node after the other until one answers, nil when none does.
func (x *traefik) ask(r *http.Request, question string) (*http.Response, []byte) {
	first := int(x.next.Add(1))
	for i := range x.nodes {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.nodes[(first+i)%len(x.nodes)]+question, nil)
		if err != nil {
			return nil, nil
		}
		req.Header = r.Header.Clone()
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		for name, value := range map[string]string{
			"X-Forwarded-Method": r.Method, "X-Forwarded-Proto": "http", "X-Forwarded-Host": r.Host,
			"X-Forwarded-Uri": r.URL.RequestURI(), "X-Forwarded-For": client,
		} {
			req.Header.Set(name, value)
		}
		req.Header.Set("X-Internal-Token", x.token)
		resp, err := x.client.Do(req)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && (resp.StatusCode < 502 || resp.StatusCode > 504 || i+1 == len(x.nodes)) { // as its retry says
			return resp, body
		}
	}
	return nil, nil
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(examples + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
