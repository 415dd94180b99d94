// Command baseline serves one fixed answer by a bare gin handler: what HTTP alone costs on this machine. It
// must never grow a feature, or it is no baseline.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/gin-gonic/gin"
)

func main() {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	body := []byte(`{"subject":"","collection":"profile","version":1,"fields":{"email":"` + strings.Repeat("x", 300) + `"}}`)
	r.GET("/", func(c *gin.Context) { c.Data(http.StatusOK, "application/json", body) })
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := http.Serve(l, r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
