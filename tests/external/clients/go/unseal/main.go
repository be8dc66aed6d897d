// Opens sealed secrets by the HPKE of Go's standard library: reads lines of a private key, the path of the
// call, a request id (`-`: none) and a sealed secret, and prints the secret of each.
package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"strings"
)

func open(private, call, id, sealed string) (string, error) {
	raw, err := hex.DecodeString(private)
	if err != nil {
		return "", err
	}
	exchange, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return "", err
	}
	key, err := hpke.NewDHKEMPrivateKey(exchange)
	if err != nil {
		return "", err
	}
	text, err := hex.DecodeString(sealed)
	if err != nil {
		return "", err
	}
	if id == "-" {
		id = ""
	}
	secret, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(call+"\x00"+id), text)
	return string(secret), err
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 4 {
			log.Fatalf("%d words", len(words))
		}
		secret, err := open(words[0], words[1], words[2], words[3])
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(secret)
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
