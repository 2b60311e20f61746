// A peer of ringmesh that shares no code with it: go-spiffe, the reference library of SPIFFE. Gets its identity from the
// Workload API at SPIFFE_ENDPOINT_SOCKET. Run by run.sh.
//
//	peer server PEER-ID          serves by mTLS, tells whoever is PEER-ID who he is, and prints its address
//	peer client ADDRESS PEER-ID  asks a server that must be PEER-ID, by HTTP/1.1 and by HTTP/2
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	context, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(context)
	if err != nil {
		log.Fatal("workload api: ", err)
	}
	defer source.Close()
	switch {
	case len(os.Args) == 3 && os.Args[1] == "server":
		serve(source, spiffeid.RequireFromString(os.Args[2]))
	case len(os.Args) == 4 && os.Args[1] == "client":
		for _, protocol := range []string{"http/1.1", "h2"} {
			ask(source, os.Args[2], spiffeid.RequireFromString(os.Args[3]), protocol)
		}
	default:
		log.Fatal("see main.go")
	}
}

func serve(source *workloadapi.X509Source, peer spiffeid.ID) {
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(peer))
	config.NextProtos = []string{"h2", "http/1.1"}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	answer := func(to http.ResponseWriter, request *http.Request) {
		id, err := x509svid.IDFromCert(request.TLS.PeerCertificates[0])
		fmt.Fprintln(to, "peer", id, err, "by", request.Proto, "cert", request.Header.Get("X-Forwarded-Client-Cert"))
	}
	server := &http.Server{Handler: http.HandlerFunc(answer), TLSConfig: config}
	fmt.Println(listener.Addr())
	log.Fatal(server.ServeTLS(listener, "", ""))
}

func ask(source *workloadapi.X509Source, address string, peer spiffeid.ID, protocol string) {
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(peer))
	config.NextProtos = []string{protocol}
	transport := &http.Transport{
		TLSClientConfig:   config,
		ForceAttemptHTTP2: protocol == "h2",
	}
	if protocol != "h2" {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	response, err := client.Get("https://" + address + "/")
	if err != nil {
		log.Fatal(protocol, ": ", err)
	}
	body, _ := io.ReadAll(response.Body)
	fmt.Print(response.Proto, " ", response.StatusCode, " ", string(body))
}
