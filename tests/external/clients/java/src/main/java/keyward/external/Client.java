package keyward.external;

import com.google.common.util.concurrent.ListenableFuture;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.Collectors;
import keyward.v1.Decision;
import keyward.v1.StreamVerifyRequest;
import keyward.v1.StreamVerifyResponse;
import keyward.v1.VerifyRequest;
import keyward.v1.VerifyResponse;

/** A service in Java that talks to Keyward through grpc-java. See ../README.md. */
public final class Client {
  private static final long CALL_SECONDS = 20;

  private static final MethodDescriptor<VerifyRequest, VerifyResponse> VERIFY =
      method("Verify", MethodType.UNARY, VerifyRequest.getDefaultInstance(), VerifyResponse.getDefaultInstance());
  private static final MethodDescriptor<StreamVerifyRequest, StreamVerifyResponse> STREAM_VERIFY =
      method(
          "StreamVerify",
          MethodType.BIDI_STREAMING,
          StreamVerifyRequest.getDefaultInstance(),
          StreamVerifyResponse.getDefaultInstance());

  private final String secret = System.getenv("SECRET");
  private final Channel channel;

  private final Map<String, Integer> failed = new TreeMap<>();
  private int calls;
  private int cancelled;
  private String firstError = "";

  private Client(Channel channel) {
    this.channel = channel;
  }

  private static ChannelCredentials credentials(String tlsDir) throws IOException {
    if (tlsDir.isEmpty()) {
      return InsecureChannelCredentials.create();
    }
    return TlsChannelCredentials.newBuilder()
        .trustManager(new File(tlsDir, "ca.pem"))
        .keyManager(new File(tlsDir, "caller.pem"), new File(tlsDir, "caller.key"))
        .build();
  }

  public static void main(String[] args) throws Exception {
    ManagedChannel channel =
        Grpc.newChannelBuilder(System.getenv("TARGET"), credentials(System.getenv("TLS_DIR"))).build();
    Metadata headers = new Metadata();
    headers.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + System.getenv("KEY"));
    ClientInterceptor bearer = MetadataUtils.newAttachHeadersInterceptor(headers);
    System.out.println(new Client(ClientInterceptors.intercept(channel, bearer)).run());
    channel.shutdownNow().awaitTermination(CALL_SECONDS, TimeUnit.SECONDS);
    System.exit(0);
  }

  private String run() throws InterruptedException {
    Talk talk = new Talk();
    String trouble = talk.ask("first");
    double seconds = drive(number("CALLS"), number("RATE"));
    if (trouble.isEmpty()) {
      trouble = talk.ask("last");
    }
    if (trouble.isEmpty()) {
      trouble = talk.hangUp();
    }
    if (!trouble.isEmpty()) {
      note("the open stream: " + trouble);
    }
    String byCode =
        failed.entrySet().stream().map(e -> quoted(e.getKey()) + ": " + e.getValue()).collect(Collectors.joining(", "));
    return String.format(
        Locale.ROOT,
        "{\"calls\": %d, \"cancelled\": %d, \"failed\": {%s}, \"first_error\": %s, "
            + "\"stream_ok\": %b, \"seconds\": %.3f}",
        calls,
        cancelled,
        byCode,
        quoted(firstError),
        trouble.isEmpty(),
        seconds);
  }

  /** Makes the calls at their times, and says how long that took. */
  private double drive(int calls, int rate) throws InterruptedException {
    AtomicInteger next = new AtomicInteger();
    long begin = System.nanoTime();
    Thread[] workers = new Thread[number("WORKERS")];
    for (int w = 0; w < workers.length; w++) {
      workers[w] =
          new Thread(
              () -> {
                for (int n = next.getAndIncrement(); n < calls; n = next.getAndIncrement()) {
                  waitUntil(begin + n * (1_000_000_000L / rate));
                  verify(n % 100 < number("CANCEL_PERCENT"));
                }
              });
      workers[w].start();
    }
    for (Thread worker : workers) {
      worker.join();
    }
    return (System.nanoTime() - begin) / 1e9;
  }

  /** Makes one call. One that is to be cancelled is given up as soon as it is sent. */
  private void verify(boolean cancels) {
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
    ListenableFuture<VerifyResponse> reply =
        ClientCalls.futureUnaryCall(channel.newCall(VERIFY, options), question(""));
    if (cancels) {
      reply.cancel(true);
    }
    try {
      Decision decision = reply.get().getDecision();
      boolean isRight = decision == Decision.DECISION_ALLOW;
      count(isRight ? Status.OK : Status.UNKNOWN.withDescription("a working key got " + decision));
    } catch (CancellationException e) {
      count(Status.CANCELLED);
    } catch (ExecutionException e) {
      count(Status.fromThrowable(e.getCause()));
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  private VerifyRequest question(String correlation) {
    return VerifyRequest.newBuilder().setSecret(secret).setCorrelationId(correlation).build();
  }

  private synchronized void count(Status status) {
    calls++;
    switch (status.getCode()) {
      case OK -> {}
      case CANCELLED -> cancelled++;
      default -> {
        failed.merge(status.getCode().name(), 1, Integer::sum);
        note(status.toString());
      }
    }
  }

  private synchronized void note(String error) {
    if (firstError.isEmpty()) {
      firstError = error;
    }
  }

  /** A stream of verifications that stays open. What goes wrong with it is given as a text. */
  private final class Talk implements StreamObserver<StreamVerifyResponse> {
    /** Answers, and in the end a status. */
    private final BlockingQueue<Object> heard = new ArrayBlockingQueue<>(8);

    private final StreamObserver<StreamVerifyRequest> requests =
        ClientCalls.asyncBidiStreamingCall(channel.newCall(STREAM_VERIFY, CallOptions.DEFAULT), this);

    String ask(String correlation) throws InterruptedException {
      requests.onNext(StreamVerifyRequest.newBuilder().setRequest(question(correlation)).build());
      Object next = heard.poll(CALL_SECONDS, TimeUnit.SECONDS);
      boolean isRight =
          next instanceof StreamVerifyResponse answer
              && answer.getCorrelationId().equals(correlation)
              && answer.getResponse().getDecision() == Decision.DECISION_ALLOW;
      return isRight ? "" : "to " + correlation + " it said " + next;
    }

    String hangUp() throws InterruptedException {
      requests.onCompleted();
      Object end = heard.poll(CALL_SECONDS, TimeUnit.SECONDS);
      return Status.OK.equals(end) ? "" : "it ended with " + end;
    }

    @Override
    public void onNext(StreamVerifyResponse answer) {
      heard.add(answer);
    }

    @Override
    public void onError(Throwable error) {
      heard.add(Status.fromThrowable(error));
    }

    @Override
    public void onCompleted() {
      heard.add(Status.OK);
    }
  }

  private static <Q extends Message, A extends Message> MethodDescriptor<Q, A> method(
      String name, MethodType type, Q request, A reply) {
    return MethodDescriptor.newBuilder(ProtoUtils.marshaller(request), ProtoUtils.marshaller(reply))
        .setType(type)
        .setFullMethodName(MethodDescriptor.generateFullMethodName("keyward.v1.KeyVerify", name))
        .build();
  }

  private static void waitUntil(long time) {
    for (long left = time - System.nanoTime(); left > 0; left = time - System.nanoTime()) {
      LockSupport.parkNanos(left);
    }
  }

  private static String quoted(String text) {
    return '"' + text.replaceAll("[\"\\\\\\p{Cntrl}]", " ") + '"';
  }

  private static int number(String name) {
    return Integer.parseInt(System.getenv(name));
  }
}
