// A service in Go that talks to Keyward through grpc-go. See ../README.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bufbuild/protocompile"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

const (
	callTimeout   = 20 * time.Second
	streamTimeout = 10 * time.Minute
)

// What the tests read.
type report struct {
	Calls      int            `json:"calls"`
	Cancelled  int            `json:"cancelled"`
	Failed     map[string]int `json:"failed"`
	FirstError string         `json:"first_error"`
	StreamOK   bool           `json:"stream_ok"`
	Seconds    float64        `json:"seconds"`
}

type client struct {
	conn     *grpc.ClientConn
	service  protoreflect.ServiceDescriptor
	metadata metadata.MD
	secret   string

	mutex  sync.Mutex
	report report
}

func main() {
	log.SetFlags(0)
	calls := number("CALLS")
	interval := time.Second / time.Duration(number("RATE"))
	c := newClient()
	defer c.conn.Close()

	talk := c.openTalk()
	c.report.StreamOK = talk.ask("first") == nil
	var next atomic.Int64
	var workers sync.WaitGroup
	begin := time.Now()
	for range number("WORKERS") {
		workers.Go(func() {
			for n := int(next.Add(1)) - 1; n < calls; n = int(next.Add(1)) - 1 {
				time.Sleep(time.Until(begin.Add(time.Duration(n) * interval)))
				c.count(c.verify(n%100 < number("CANCEL_PERCENT")))
			}
		})
	}
	workers.Wait()
	c.report.Seconds = time.Since(begin).Seconds()
	for _, end := range []func() error{func() error { return talk.ask("last") }, talk.hangUp} {
		if err := end(); err != nil {
			c.report.StreamOK = false
			c.note(fmt.Errorf("the open stream: %w", err))
		}
	}
	must(json.NewEncoder(os.Stdout).Encode(c.report))
}

func transportCredentials(tlsDir string) credentials.TransportCredentials {
	if tlsDir == "" {
		return insecure.NewCredentials()
	}
	authority, err := os.ReadFile(filepath.Join(tlsDir, "ca.pem"))
	must(err)
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(authority)
	pair, err := tls.LoadX509KeyPair(filepath.Join(tlsDir, "caller.pem"), filepath.Join(tlsDir, "caller.key"))
	must(err)
	return credentials.NewTLS(&tls.Config{
		RootCAs:      authorities,
		Certificates: []tls.Certificate{pair},
		ServerName:   "localhost",
	})
}

func newClient() *client {
	conn, err := grpc.NewClient("passthrough:///"+os.Getenv("TARGET"),
		grpc.WithTransportCredentials(transportCredentials(os.Getenv("TLS_DIR"))))
	must(err)
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{filepath.Clean(os.Getenv("PROTO_DIR"))},
		}),
	}
	files, err := compiler.Compile(context.Background(), "keyward/v1/verify.proto")
	must(err)
	return &client{
		conn:     conn,
		service:  files[0].Services().ByName("KeyVerify"),
		metadata: metadata.Pairs("authorization", "Bearer "+os.Getenv("KEY")),
		secret:   os.Getenv("SECRET"),
		report:   report{Failed: map[string]int{}},
	}
}

// Makes one call. One that is to be cancelled is given up as soon as it is sent.
func (c *client) verify(cancels bool) error {
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(context.Background(), c.metadata), callTimeout)
	defer cancel()
	method := c.service.Methods().ByName("Verify")
	request, reply := c.question(method.Input()), dynamicpb.NewMessage(method.Output())
	if !cancels {
		if err := c.conn.Invoke(ctx, "/keyward.v1.KeyVerify/Verify", request, reply); err != nil {
			return err
		}
		return isAllowed(reply)
	}
	call, err := c.conn.NewStream(ctx, &grpc.StreamDesc{}, "/keyward.v1.KeyVerify/Verify")
	if err != nil {
		return err
	}
	if err := call.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	cancel()
	return call.RecvMsg(reply)
}

func (c *client) question(message protoreflect.MessageDescriptor) *dynamicpb.Message {
	question := dynamicpb.NewMessage(message)
	question.Set(message.Fields().ByName("secret"), protoreflect.ValueOfString(c.secret))
	return question
}

func (c *client) count(err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.report.Calls++
	switch {
	case err == nil:
	case status.Code(err) == codes.Canceled:
		c.report.Cancelled++
	default:
		c.report.Failed[status.Code(err).String()]++
		c.note(err)
	}
}

func (c *client) note(err error) {
	if c.report.FirstError == "" {
		c.report.FirstError = err.Error()
	}
}

// A stream of verifications that stays open.
type talk struct {
	client *client
	method protoreflect.MethodDescriptor
	stream grpc.ClientStream
	cancel context.CancelFunc
}

func (c *client) openTalk() *talk {
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(context.Background(), c.metadata), streamTimeout)
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/keyward.v1.KeyVerify/StreamVerify")
	must(err)
	return &talk{client: c, method: c.service.Methods().ByName("StreamVerify"), stream: stream, cancel: cancel}
}

// Sends a request and waits for its answer.
func (t *talk) ask(correlation string) error {
	input := t.method.Input().Fields().ByName("request")
	question := t.client.question(input.Message())
	question.Set(input.Message().Fields().ByName("correlation_id"), protoreflect.ValueOfString(correlation))
	request := dynamicpb.NewMessage(t.method.Input())
	request.Set(input, protoreflect.ValueOfMessage(question))
	if err := t.stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	reply := dynamicpb.NewMessage(t.method.Output())
	if err := t.stream.RecvMsg(reply); err != nil {
		return err
	}
	fields := t.method.Output().Fields()
	if got := reply.Get(fields.ByName("correlation_id")).String(); got != correlation {
		return fmt.Errorf("the answer to %q instead of %q", got, correlation)
	}
	return isAllowed(reply.Get(fields.ByName("response")).Message().Interface())
}

// Ends the stream, which the server must agree to.
func (t *talk) hangUp() error {
	defer t.cancel()
	if err := t.stream.CloseSend(); err != nil {
		return err
	}
	if err := t.stream.RecvMsg(dynamicpb.NewMessage(t.method.Output())); !errors.Is(err, io.EOF) {
		return fmt.Errorf("it ended with %v", err)
	}
	return nil
}

func isAllowed(reply proto.Message) error {
	fields := reply.ProtoReflect().Descriptor().Fields()
	decision := fields.ByName("decision")
	name := decision.Enum().Values().ByNumber(reply.ProtoReflect().Get(decision).Enum()).Name()
	if name != "DECISION_ALLOW" {
		return fmt.Errorf("a working key got %s", name)
	}
	return nil
}

func number(name string) int {
	value, err := strconv.Atoi(os.Getenv(name))
	must(err)
	return value
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
